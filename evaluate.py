"""Measures quality against the number of sampling steps: the figure of Salimans & Ho 2022 (their figure 4).

    python evaluate.py --config_path configs/ddpm_32x32_v_continuous_small.yaml \\
      --teacher output/ddpm_32x32_v_continuous_small/diffusion-3600.pt \\
      --students output/distilled/ddpm_32x32_v_continuous_small

Compares samples of the teacher, by each sampler in several numbers of steps, and of every student in its own number of
steps, with the test images: FID, KID and other metrics, in results.json. The first row is the floor: real images. The
ratio is FID divided by that of the teacher's best row, the base. Rows that are already in results.json are not computed
again, so the same command resumes an interrupted evaluation.
"""

import argparse
import re
from functools import partial
from pathlib import Path

from tqdm import tqdm

from models.samplers import SAMPLERS
from utils.checkpoints.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint
from utils.checkpoints.compute import PASSES, Compute, choose_device
from utils.config.reading import load_config
from utils.config.schema import Config
from utils.data.datasets import load_images, require_num_classes, require_same_classes, require_test_root
from utils.data.images import ImageSet
from utils.evaluation.evaluation import TRAINING_IMAGES, Candidate, Evaluation, Results
from utils.evaluation.figures import draw_figure, draw_trade_off, table
from utils.evaluation.metrics import EXTRACTORS
from utils.system import cli
from utils.system.errors import InputError
from utils.system.files import find_files, locked

TEACHER_STEPS = [32, 16, 8, 4, 2, 1]
FEW_SAMPLES = 1000


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = cli.Parser(description=__doc__)
    parser.add_config_path()
    help = "the teacher's diffusion-<step>.pt; required"
    parser.add_argument("--teacher", required=True, metavar="CHECKPOINT", help=help)
    help = "folders of distill.py and match.py, whose latest checkpoints are used; or checkpoints (default: none)"
    parser.add_argument("--students", type=Path, nargs="+", metavar="PATH", help=help)
    parser.add_count("--student_steps", "only the students of these numbers of steps (default: all)", nargs="+")
    help = "samples per row, at most the number of training images; only rows with the same number can be compared"
    parser.add_count("--num_samples", help, 2500)
    help = "of the teacher (default: 32 16 8 4 2, and 1 for a deterministic sampler; at most its own number)"
    parser.add_count("--sampling_steps", help, nargs="+")
    help = f"of the teacher and its students (default: {' '.join(SAMPLERS)}); matched students have their own"
    parser.add_argument("--samplers", choices=list(SAMPLERS), nargs="+", default=list(SAMPLERS), help=help)
    help = "clip the teacher's x to [-1, 1] in each step (default: as the teacher's checkpoint says)"
    parser.add_argument("--clip", action=argparse.BooleanOptionalAction, help=help)
    help = (
        "guidance scales. With several, the table is complete for the first; the others are of the teacher's most "
        "steps (or --sampling_steps) and of the students, and a second figure shows FID against the share of samples "
        "of the requested class (default: 1)"
    )
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0], metavar="SCALE", help=help)
    help = "for FID and KID: of a small classifier, trained at the first use, or of Inception (default: classifier)"
    parser.add_argument("--features", choices=list(EXTRACTORS), default="classifier", help=help)
    parser.add_count("--batch_size", "samples drawn at once", 250)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")
    help = "where results.json and the figures are written (default: output/evaluation/<name of the config>)"
    parser.add_argument("--output_dir", type=Path, metavar="FOLDER", help=help)
    parser.add_compute_arguments()
    arguments = parser.parse_args()
    if arguments.num_samples < 2:
        raise InputError("--num_samples: should be at least 2; below some thousands, FID says little")
    return arguments


def find_students(arguments: argparse.Namespace) -> list[Checkpoint]:
    """The latest checkpoint of each requested student, most steps first, matched ones last. Raises InputError if none.

    The folders of distill.py hold students in folders such as 7_8/, those of match.py in folders such as 8/. A path may
    also be a checkpoint.
    """
    students = []
    for path in dict.fromkeys(arguments.students or ()):
        runs = [run for run in find_files(path, "*") if re.fullmatch(r"(\d+_)?\d+", run.name)]
        files = [path] if path.is_file() else map(latest_checkpoint, runs)
        found = [checkpoint for checkpoint in map(load_checkpoint, filter(None, files)) if checkpoint.is_student]
        if not found:
            raise InputError(f"--students {path}: no students there, such as 7_8/diffusion-360.pt")
        students += found
    known = {student.sampling.steps for student in students}
    wanted = set(arguments.student_steps or known)
    if missing := sorted(wanted - known):
        raise InputError(f"--student_steps {missing[0]}: no such student; there are {sorted(known)}")
    chosen = [student for student in students if student.sampling.steps in wanted]
    return sorted(chosen, key=lambda student: (student.kind == "matched", -student.sampling.steps))


def load_both(config: Config, arguments: argparse.Namespace) -> tuple[ImageSet, ImageSet]:
    """The training and test images. Raises InputError if there are too few."""
    require_test_root(config.data)
    training = load_images(config.data, accept=partial(require_num_classes, config=config))
    test = load_images(config.data, test=True, accept=partial(require_same_classes, training=training.class_names))
    count = arguments.num_samples
    if count > len(training.images):
        raise InputError(f"--num_samples {count}: more than the {len(training.images)} training images of the floor")
    if len(test.images) < 2:
        raise InputError("data.test_root: one image is not enough to compare with; there should be at least two")
    if min(count, len(test.images)) < FEW_SAMPLES:
        print(f"note: FID of only {min(count, len(test.images))} images says little; some thousands are needed")
    return training, test


def candidates_of(arguments: argparse.Namespace, teacher: Checkpoint, students: list[Checkpoint]) -> list[Candidate]:
    """The rows of the table: the floor, the teacher, the students."""
    candidates = [TRAINING_IMAGES]
    own, first_sampler = teacher.sampling.steps, "ddim" if "ddim" in arguments.samplers else arguments.samplers[0]
    default_steps = {n for n in TEACHER_STEPS if n <= own} | ({own} if teacher.is_student else set())
    for guidance in dict.fromkeys(arguments.guidance):
        is_first = guidance == arguments.guidance[0]
        rows = [
            ("teacher", teacher, {"sampler": sampler, "steps": steps})
            for sampler in dict.fromkeys(arguments.samplers)
            for steps in sorted(set(arguments.sampling_steps or default_steps), reverse=True)
            if arguments.sampling_steps or steps > 1 or not SAMPLERS[sampler].stochastic  # in one step all are the same
        ]
        if not is_first:
            rows = [row for row in rows if row[2]["sampler"] == first_sampler]
            rows = rows if arguments.sampling_steps else rows[:1]
        for student in students:
            samplers = [student.sampling.sampler] if student.kind == "matched" else arguments.samplers
            samplers = samplers[:1] if student.sampling.steps == 1 else samplers  # which are all the same
            rows += [(student.kind, student, {"sampler": sampler}) for sampler in samplers]
        for name, checkpoint, update in rows:
            sampling = checkpoint.sampling.model_copy(update=update)
            candidates.append(Candidate.of(name, checkpoint, sampling, guidance))
    return candidates


def main() -> None:
    """Checks everything before sampling; then evaluates one row after the other."""
    arguments = parse_arguments()
    config = load_config(arguments.config_path, cli.overrides(arguments))
    device = choose_device(arguments.device)
    teacher, students = load_checkpoint(arguments.teacher), find_students(arguments)
    sampling, clip = teacher.sampling, teacher.sampling.clip if arguments.clip is None else arguments.clip
    if not teacher.is_student:  # the configuration may have changed since it was trained
        sampling = config.sampling.of_teacher(sampling.steps)
    teacher = teacher.model_copy(update={"sampling": sampling.model_copy(update={"clip": clip})})
    for checkpoint in [teacher, *students]:
        checkpoint.require_same_model(config, arguments.config_path)
        for scale in arguments.guidance:
            checkpoint.require_guidance(scale)
    name = Path(arguments.config_path).stem
    folder = arguments.output_dir or Path("output", "evaluation", name)
    results = Results(folder / "results.json")  # checks it before anything is written
    kept = [entry["precision"] for entry in results.entries if entry.get("precision") in ("fp32", "bf16")]
    if config.precision == "auto" and kept:  # not measured anew: rows of two precisions would mix
        config = config.model_copy(update={"precision": kept[-1]})
    training, test = load_both(config, arguments)
    for checkpoint in [teacher, *students]:
        checkpoint.require_same_classes(training.class_names)
        if checkpoint.differs_in_images(training.hash):
            print(f"note: the training images differ from those that {checkpoint.path} was trained on")
    candidates, rows = candidates_of(arguments, teacher, students), []
    passes = PASSES["sampling"] * arguments.num_samples * sum(row.evaluations for row in candidates)
    with locked(folder), tqdm(unit="evaluation", smoothing=0.05, leave=False) as bar:
        evaluation = Evaluation(
            config=config,
            teacher=teacher,
            training_images=training.images,
            test_images=test.images,
            extractor=EXTRACTORS[arguments.features](config.data.name, training, test, device),
            results=Results(folder / "results.json"),
            num_samples=arguments.num_samples,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            compute=Compute.choose(config, device, passes=passes, training=False),
            bar=bar,
            compared_guidance=arguments.guidance[0],
        )
        title = f"{name}, {arguments.num_samples} samples, features: {arguments.features}"
        tqdm.write(f"evaluating on {evaluation.compute}: {title}, writing to {folder}")
        bar.reset(total=evaluation.num_network_evaluations(candidates))
        for candidate in candidates:
            rows.append((candidate, evaluation.evaluate(candidate)))
            tqdm.write(f"{candidate}: FID {rows[-1][1]['fid']:.3f}")
        draw_figure(rows, title, folder / "fid.png")
        if len(set(arguments.guidance)) > 1 and any(found["right"] is not None for _, found in rows):
            draw_trade_off(rows, title, folder / "guidance.png")
    print(table(rows))
    print(f"wrote results.json and the figures to {folder}")


if __name__ == "__main__":
    cli.run(main)
