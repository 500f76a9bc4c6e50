"""Evaluates models: the features of their samples against those of the test images. Nothing is computed twice."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from models.samplers import SAMPLERS
from utils.checkpoints.checkpoint import Checkpoint, load_checkpoint
from utils.checkpoints.compute import Compute
from utils.checkpoints.sampling import batches_of, draw_all, draw_batch, network_evaluations
from utils.config.schema import Config, SamplerSettings, Section
from utils.data.images import content_hash, to_bytes
from utils.evaluation.metrics import METRICS, Extractor, Features
from utils.system.distributed import all_gather, distributed_map, tasks_per_rank
from utils.system.errors import InputError, counted
from utils.system.files import read_if_there, write_atomically
from utils.system.seeds import seed_of

NUM_COMPARED = 64  # samples of the column `distance`


class Results:
    """The entries of a results.json: flat dictionaries of what was evaluated (the key) and of its results."""

    def __init__(self, path: Path):
        """Reads the file if it exists. Raises InputError if it is something else, or of another format version."""
        self.path = path
        self.entries = _read_entries(path)

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The first entry that contains all of a key."""
        for entry in self.entries:
            if all(name in entry and entry[name] == value for name, value in key.items()):
                return entry
        return None

    def add(self, entry: dict[str, Any]) -> None:
        """Adds an entry, and writes the file."""
        self.entries.append(entry)
        text = json.dumps({"format_version": 4, "evaluations": self.entries}, indent=1)
        write_atomically(self.path, lambda file: file.write(text.encode()))


class ResultsFile(Section):
    """The contents of a results.json."""

    format_version: Literal[4]
    evaluations: list[dict[str, Any]]


def _read_entries(path: Path) -> list[dict[str, Any]]:
    try:
        text = read_if_there(path)
        return [] if text is None else ResultsFile.model_validate(json.loads(text)).evaluations
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, or not of this version of evaluate.py; delete or rename it") from error


@dataclass(frozen=True)
class Candidate:
    """A row of the table: the samples of a checkpoint, or, without one, real images."""

    name: str
    path: Path | None = None
    sha256: str | None = None  # of the checkpoint
    sampling: SamplerSettings | None = None
    guidance: float = 1.0
    evaluations: int = 0  # network evaluations of a sample

    @classmethod
    def of(cls, name: str, checkpoint: Checkpoint, sampling: SamplerSettings, guidance: float) -> "Candidate":
        """The samples of a checkpoint."""
        evaluations = network_evaluations(sampling, guidance, takes_guidance=checkpoint.guidance is not None)
        return cls(name, checkpoint.path, checkpoint.sha256, sampling, guidance, evaluations)

    def __str__(self) -> str:
        if self.path is None:
            return self.name
        text = f"{self.name}, {self.sampling.sampler}, {counted(self.sampling.steps, 'step')}"
        return text if self.guidance == 1 else f"{text}, guidance {self.guidance:g}"


TRAINING_IMAGES = Candidate("training images")


@dataclass
class Evaluation:
    """Evaluates candidates with one number of samples and one seed, and keeps the results in a file.

    The batches are divided among the ranks; each rank gets the features of all, and so the same results.
    """

    config: Config
    teacher: Checkpoint  # the column `distance` compares DDIM samples with its own in 1024, from the same noise
    training_images: Tensor
    test_images: Tensor
    extractor: Extractor
    results: Results
    num_samples: int
    seed: int
    batch_size: int  # samples drawn at once; results do not depend on it, except for rounding
    compute: Compute
    bar: tqdm = field(default_factory=lambda: tqdm(disable=True))
    compared_guidance: float = 1.0  # the guidance scale of the column `distance`

    def key(self, candidate: Candidate) -> dict[str, Any]:
        """Everything that a candidate's results depend on: the key of its entry in the file."""
        key = {"name": candidate.name, "num_samples": self.num_samples, "seed": self.seed}
        key |= {"features": self.extractor.name, "reference": self._reference_hash}
        if candidate == TRAINING_IMAGES:
            return key | {"training_images": content_hash(self.training_images)}
        sampling = candidate.sampling
        key |= sampling.model_dump(exclude={"steps"}) | {"sampling_steps": sampling.steps}
        key["variance"] = sampling.variance_fraction if SAMPLERS[sampling.sampler].stochastic else None
        key |= {"checkpoint_sha256": candidate.sha256, "guidance": candidate.guidance}
        key["precision"] = self.compute.precision
        if self._is_compared(candidate):
            key["teacher_sha256"] = self.teacher.sha256
        return key

    def evaluate(self, candidate: Candidate) -> dict[str, Any]:
        """The results of a candidate: from the file, or computed and added to it."""
        key = self.key(candidate)
        if entry := self.results.find(key):
            return entry
        self.bar.set_description(str(candidate))
        found: dict[str, Any] = {"checkpoint": str(candidate.path) if candidate.path else None, "distance": None}
        samples = self._features(candidate, found)
        for metric in METRICS:
            found |= metric(self._real, samples)
        if taken := key.keys() & found.keys():
            raise ValueError(f"a metric has the name of a key of the entry: {', '.join(taken)}")
        self.results.add(key | found)
        return key | found

    def num_network_evaluations(self, candidates: list[Candidate]) -> int:
        """The network evaluations of a rank, in batches, for the candidates that are not in the file."""
        left = [each for each in candidates if each.path and not self.results.find(self.key(each))]
        batches = tasks_per_rank(batches_of(self.num_samples, self.batch_size))
        total = sum(each.evaluations * batches for each in left)
        if any(self._is_compared(each) for each in left):
            total += self._reference_candidate.evaluations * tasks_per_rank(batches_of(NUM_COMPARED, self.batch_size))
        return total

    @cached_property
    def _reference_hash(self) -> str:
        return content_hash(self.test_images)

    @cached_property
    def _real(self) -> Features:
        """The features of the test images."""
        return self._extract(len(self.test_images), lambda indices: self.test_images[indices.start : indices.stop])

    def _is_compared(self, candidate: Candidate) -> bool:
        is_ddim = candidate.path is not None and candidate.sampling.sampler == "ddim"
        return is_ddim and candidate.guidance == self.compared_guidance

    @cached_property
    def _reference_candidate(self) -> Candidate:
        sampling = self.teacher.sampling.model_copy(update={"sampler": "ddim"})
        return Candidate.of("teacher", self.teacher, sampling, self.compared_guidance)

    @cached_property
    def _reference(self) -> Tensor:
        """The samples that others are compared with, on the CPU of every rank."""
        self.bar.set_description(f"{self._reference_candidate}, for comparison")
        draw = partial(self._sampler(self._reference_candidate), tick=self.bar.update)
        return draw_all(draw, NUM_COMPARED, self.batch_size)

    def _sampler(self, candidate: Candidate) -> Callable[..., Tensor]:
        """A function that draws the samples of given indices, [B, C, H, W] in [-1, 1]."""
        model = load_checkpoint(candidate.path).model(self.compute.device)
        model = self.compute.for_inference(model, self.batch_size)
        options = {"sampling": candidate.sampling, "guidance": candidate.guidance, "seed": self.seed}
        return partial(draw_batch, model, self.config, device=self.compute.device, **options)

    @torch.inference_mode()
    def _extract(self, count: int, images_of: Callable[[range], Tensor]) -> Features:
        """The features of `count` images; `images_of` gives those of a batch, as uint8 [B, C, H, W]."""

        def features(indices: range) -> tuple[Tensor, Tensor | None]:
            found, classes = self.extractor.extract(images_of(indices).to(self.compute.device))
            return found.cpu(), classes if classes is None else classes.cpu()

        parts = list(distributed_map(features, batches_of(count, self.batch_size)))
        return Features(*(None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)))

    def _features(self, candidate: Candidate, found: dict[str, Any]) -> Features:
        """The features of a candidate's images; adds further measurements of them to `found`."""
        if candidate == TRAINING_IMAGES:
            generator = torch.Generator().manual_seed(seed_of("training images", self.seed))
            chosen = torch.randperm(len(self.training_images), generator=generator)
            return self._extract(self.num_samples, lambda indices: self.training_images[chosen[list(indices)]])
        features, num_classes = self._sample_features(candidate, found), self.config.network.num_classes
        if num_classes and num_classes == self.extractor.num_classes:
            features = features._replace(labels=torch.arange(self.num_samples) % num_classes)
        return features

    def _sample_features(self, candidate: Candidate, found: dict[str, Any]) -> Features:
        reference = self._reference if self._is_compared(candidate) else None
        draw, seconds, squared = self._sampler(candidate), 0.0, 0.0
        if self.compute.compiles:  # before the time is measured
            one_step = candidate.sampling.model_copy(update={"steps": 1})
            draw(range(self.batch_size), sampling=one_step, tick=int)

        def samples(indices: range) -> Tensor:
            nonlocal seconds, squared
            start = time.perf_counter()
            x = draw(indices, tick=self.bar.update)
            if self.compute.device.type != "cpu":
                torch.accelerator.synchronize()
            seconds += time.perf_counter() - start
            if reference is not None and indices.start < NUM_COMPARED:
                compared = reference[indices.start : indices.stop].to(x.device)
                squared += float((x[: len(compared)] - compared).square().mean(dim=(1, 2, 3)).sum())
            return to_bytes(x)

        features = self._extract(self.num_samples, samples)
        found |= {"evaluations": candidate.evaluations, "device": str(self.compute.device)}
        found["ms_per_sample"] = 1000 * sum(all_gather(seconds)) / self.num_samples
        if reference is not None:
            found["distance"] = math.sqrt(sum(all_gather(squared)) / min(NUM_COMPARED, self.num_samples))
        return features
