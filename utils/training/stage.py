"""Stages: what is trained in one folder. A teacher, a conversion and a student are each one stage.

A further kind of stage is a function here, its loss in models/, and its training steps in a script.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from models.diffusion import Diffusion, Prediction
from utils.checkpoints.checkpoint import Checkpoint, Metadata, TrainedOn, build_model
from utils.config.schema import Config, Distillation, Optimization, SamplerSettings
from utils.system.errors import InputError, counted
from utils.system.files import exists, find_files
from utils.system.seeds import seed_of

ELSEWHERE = "another --output_dir starts another run, --restart deletes this one"
KEEP = f"the same value resumes it, {ELSEWHERE}"
CONVERSION_NAME = "0_conversion"  # the folder of the stage before the halvings
MATCHING_LAST_RATE = 1 / 3  # of the first: the average of weights that still move is better (docs/experiments.md)
FEWEST_ANCESTRAL_STEPS = 8  # from here on the ancestral sampler suits a student, unless it is guided: docs/results.md


@dataclass(frozen=True)
class Stage:
    """What is trained in a folder."""

    folder: Path
    title: str  # for messages, such as "training"
    config: Config
    kind: str  # as the next three, of its checkpoints: see `Metadata`
    sampling: SamplerSettings
    prediction: Prediction
    guidance: list[float] | None
    num_training_steps: int
    learning_rate: Callable[[int], float]  # at each of these steps
    loss_weighting: str  # one of `WEIGHTINGS`
    ignored: dict[str, Any]  # what `identity` leaves out: it has no effect, or is replaced by values above
    parent: Checkpoint | None = None  # whose weights it starts from; it also teaches, unless it starts a teacher
    teacher: Checkpoint | None = None  # of a matched student, which starts from its parent's weights

    @property
    def sources(self) -> list[Checkpoint]:
        """The checkpoints that it starts from or learns from, each once."""
        sources = [self.parent] if self.teacher is self.parent else [self.parent, self.teacher]
        return [source for source in sources if source]

    @property
    def settings(self) -> Optimization:
        """Its section of the configuration."""
        sections = {"teacher": self.config.training, "matched": self.config.matching}
        return sections.get(self.kind, self.config.distillation)

    @property
    def final_checkpoint(self) -> Path:
        """The checkpoint after its last training step."""
        return self.folder / f"diffusion-{self.num_training_steps}.pt"

    @property
    def num_sampling_steps(self) -> int | None:
        """The number of steps that it distills for, None for a teacher and a conversion."""
        return self.sampling.steps if self.kind in ("student", "matched") else None

    def seed_of(self, purpose: str, index: int) -> int:
        """The seed of the random numbers for a purpose, at a step or for an example."""
        purpose = f"matching: {purpose}" if self.kind == "matched" else purpose
        return seed_of(purpose, self.config.seed, self.num_sampling_steps, index=index)

    def initial_model(self, device: torch.device) -> Diffusion:
        """The model before the first step: its parent's, or one with random weights; only a teacher has dropout."""
        torch.manual_seed(self.config.seed)
        if self.parent is None:
            return build_model(self.config, device)
        dropout = self.config.network.dropout if self.kind == "teacher" else 0.0
        model = self.parent.model(device, dropout, takes_guidance=self.guidance is not None)
        return replace(model, prediction=self.prediction)

    def metadata(self, step: int, trained_on: TrainedOn) -> Metadata:
        """The metadata of its checkpoint at a training step."""
        own = {name: getattr(self, name) for name in ("config", "kind", "sampling", "prediction", "guidance")}
        return Metadata(step=step, trained_on=trained_on, **own)

    def identity(self) -> dict[str, Any]:
        """Everything that determines its weights, except the data: a run is resumed only if it is the same."""
        identity = self.config.model_dump(exclude=self.ignored)
        identity |= {"kind": self.kind, "sampling_steps": self.num_sampling_steps}
        if self.kind == "matched":
            identity["matching"] |= self.settings.of_student(self.sampling.steps)
            identity |= {"teacher": self.teacher.sha256, "teacher_path": str(self.teacher.path)}
        elif self.kind != "teacher":
            identity["distillation"] |= {"learning_rate": self.learning_rate(0), "loss_weighting": self.loss_weighting}
        if self.parent:
            identity |= {"parent": self.parent.sha256, "parent_path": str(self.parent.path)}
        return identity


def teacher_stage(config: Config, folder: Path, initial: Checkpoint | None) -> Stage:
    """Training on images, from random weights or from those of a checkpoint."""
    unused = {"num_training_steps"} | (set() if config.network.num_classes else {"class_dropout"})
    return Stage(
        folder=folder,
        title="training",
        config=config,
        kind="teacher",
        sampling=config.teacher_sampling,
        prediction=config.diffusion.prediction,
        guidance=None,
        num_training_steps=config.training.num_training_steps,
        learning_rate=config.training.learning_rate_at,
        loss_weighting=config.training.loss_weighting,
        ignored={"distillation": True, "matching": True, "sampling": True, "training": unused},
        parent=initial,
    )


def distillation_stages(config: Config, folder: Path, teacher: Checkpoint, students: list[int]) -> list[Stage]:
    """A conversion, if the students' prediction or guidance differs from the teacher's; then the students."""
    settings = config.distillation
    prediction, guidance = settings.prediction or teacher.prediction, settings.guidance or teacher.guidance
    scales = " and guidance {:g} to {:g}".format(*guidance) if guidance else ""
    own = {"num_training_steps_per_iteration", "learning_rate", "num_conversion_steps", "conversion_learning_rate"}
    conversion = Stage(
        folder=folder / CONVERSION_NAME,
        title=f"converting to {prediction}{scales}",
        config=config,
        kind="converted",
        sampling=config.teacher_sampling.model_copy(update={"clip": False}),
        prediction=prediction,
        guidance=guidance,
        num_training_steps=settings.num_conversion_steps,
        learning_rate=annealed(settings.conversion_learning_rate, settings.num_conversion_steps),
        # The teacher's: where its loss had little weight (v near t = 1, if it predicts eps), its output is mere noise.
        loss_weighting=config.training.loss_weighting,
        ignored={"sampling": True, "training": True, "matching": True, "distillation": own | {"loss_weighting"}},
    )
    _require_teachable(conversion, teacher)
    stages = [] if (prediction, guidance) == (teacher.prediction, teacher.guidance) else [conversion]
    for iteration, n in enumerate(students, start=1):
        num_training_steps, rate = settings.of_student(n)
        sampler = "ancestral" if n >= FEWEST_ANCESTRAL_STEPS and not guidance else "ddim"
        stage = replace(
            conversion,
            folder=folder / f"{iteration}_{n}",
            title=f"distilling to {counted(n, 'sampling step')}",
            kind="student",
            sampling=SamplerSettings(steps=n, sampler=sampler),
            num_training_steps=num_training_steps,
            learning_rate=annealed(rate, num_training_steps),
            loss_weighting=settings.loss_weighting,
        )
        stages.append(stage)
    return stages


def matching_stage(config: Config, folder: Path, teacher: Checkpoint, student: Checkpoint, steps: int) -> Stage:
    """A student of `steps` sampling steps that starts from another's weights, or from its teacher's."""
    settings = config.matching.of_student(steps)
    if teacher.is_student:
        hint = "give the checkpoint of train.py, or of 0_conversion/ if there is one"
        raise InputError(f"{teacher.path}: a student, which cannot be the teacher to match; {hint}")

    def describe(checkpoint: Checkpoint) -> str:
        scales = checkpoint.guidance
        guidance = "guidance {:g} to {:g}".format(*scales) if scales else "no guidance"
        return f"predicts {checkpoint.prediction} with {guidance}"

    ours, theirs = describe(student), describe(teacher)
    if ours != theirs:
        hint = "; as teacher, give the student's conversion (0_conversion/)" if student.is_student else ""
        raise InputError(f"{student.path}: {ours}, but {teacher.path} {theirs}{hint}")
    return Stage(
        folder=folder,
        title=f"matching with {counted(steps, 'sampling step')}",
        config=config,
        kind="matched",
        sampling=SamplerSettings(steps=steps, sampler="ancestral"),
        prediction=student.prediction,
        guidance=student.guidance,
        num_training_steps=settings["num_training_steps"],
        learning_rate=annealed(settings["learning_rate"], settings["num_training_steps"], MATCHING_LAST_RATE),
        loss_weighting="v_mse",
        ignored={"sampling": True, "training": True, "distillation": True, "matching": set(settings)},
        parent=student,
        teacher=teacher,
    )


def plan_of(settings: Distillation, students: list[int]) -> str:
    """What each student gets, as text, with a note on keys of the configuration that are no student's number."""
    plan: dict[tuple[int, float], list[str]] = {}
    for n in students:
        plan.setdefault(settings.of_student(n), []).append(str(n))
    parts = [f"{', '.join(names)}: {counted(count, 'step')} at {rate:g}" for (count, rate), names in plan.items()]
    keys = {**settings.num_training_steps_per_iteration, **settings.learning_rate}.keys() - {"default"}
    halved_or_doubled = {students[0] * 2.0**k for k in range(-31, 32)}
    unused = [str(n) for n in sorted(keys - halved_or_doubled, reverse=True)]
    if unused:
        parts.append(f"note: the configuration names {', '.join(unused)} sampling steps, which no student takes")
    return f"training steps and learning rate by sampling steps: {'; '.join(parts)}"


def annealed(learning_rate: float, num_training_steps: int, last: float = 0.0) -> Callable[[int], float]:
    """A learning rate that falls linearly to a fraction `last` of it (0: Salimans & Ho 2022, section 3)."""
    return lambda step: learning_rate * (1 - (1 - last) * step / num_training_steps)


def _require_teachable(conversion: Stage, teacher: Checkpoint) -> None:
    scales = conversion.guidance
    if scales and teacher.guidance and scales != teacher.guidance:
        raise InputError(f"distillation.guidance: {scales}, but {teacher.path} was distilled for {teacher.guidance}")
    for scale in scales or ():
        teacher.require_guidance(scale, "distillation.guidance")
    if conversion.prediction != teacher.prediction and teacher.kind == "student":
        raise InputError(
            f"distillation.prediction: {conversion.prediction}, but {teacher.path} predicts {teacher.prediction}, and "
            f"was trained only at the times of {teacher.sampling.steps} steps; convert its first teacher instead"
        )


def student_folders(folder: Path) -> list[tuple[Path, int, int]]:
    """The folders of the students of a distillation: (path, iteration, number of sampling steps)."""
    matches = [(path, re.fullmatch(r"(\d+)_(\d+)", path.name)) for path in find_files(folder, "*_*")]
    return [(path, int(match[1]), int(match[2])) for path, match in matches if match]


def stage_folders(folder: Path) -> list[Path]:
    """The folders of all stages of a distillation."""
    return find_files(folder, CONVERSION_NAME) + [path for path, _, _ in student_folders(folder)]


def require_same_stages(folder: Path, stages: list[Stage]) -> None:
    """Raises InputError if the folder contains a distillation with other numbers of steps, or another conversion."""
    students = [stage.sampling.steps for stage in stages if stage.kind == "student"]
    converts, converted = len(stages) > len(students), exists(folder / CONVERSION_NAME)
    if converted != converts and (converted or student_folders(folder)):
        before, now = ("a", "none") if converted else ("no", "one")
        raise InputError(
            f"{folder}: another distillation, with {before} conversion; distillation.guidance and .prediction now "
            f"require {now}; {ELSEWHERE}"
        )
    for path, iteration, steps in student_folders(folder):
        if iteration <= len(students) and steps != students[iteration - 1]:
            raise InputError(
                f"{path}: belongs to another distillation: --initial_sampling_steps is {steps * 2 ** (iteration - 1)}, "
                f"not {students[0]}; {KEEP}"
            )
