"""Evaluating models: sets of pictures, each judged against the test images, and once only."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from utils.checkpoints import Checkpoint, fingerprint, load_checkpoint
from utils.compute import Compute
from utils.config import Config
from utils.metrics import Extractor, QualityMetrics
from utils.randomness import seed_of
from utils.results import Results
from utils.sampling import num_batches, sample_batches

NUM_COMPARED = 64  # pictures that are kept, of the teacher at 1024 steps, to be compared with others pixel by pixel
SAME_PICTURE = 0.01  # root mean squared difference, in [-1, 1], below which pictures are the same: 1.3 of 255 greys


def to_bytes(x: Tensor) -> Tensor:
    """Pictures in [-1, 1] (values beyond are cut) as uint8, as a PNG would hold them."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte()


@dataclass(frozen=True)
class Candidate:
    """A set of pictures: of a model at a number of steps, or, without a checkpoint, what models are measured by."""

    name: str
    path: Path | None = None
    sampler: str | None = None
    sampling_steps: int | None = None

    def __str__(self) -> str:
        if self.path is None:
            return self.name
        return f"{self.name}, {self.sampler}, {self.sampling_steps} step{'s' if self.sampling_steps > 1 else ''}"


TRAINING_IMAGES, UNIFORM_NOISE = Candidate("training images"), Candidate("uniform noise")


@dataclass
class Evaluation:
    """Judges candidates with one number of samples and one seed, and keeps the results in a file.

    Attributes:
        teacher: what the DDIM pictures of all candidates are compared with, at 1024 steps, from the same noise.
        batch_size: pictures drawn at once; it changes speed and rounding, so results are shared between batch sizes.
    """

    config: Config
    teacher: Checkpoint
    training_images: Tensor
    test_images: Tensor
    extractor: Extractor
    results: Results
    num_samples: int
    seed: int
    batch_size: int
    compute: Compute
    bar: tqdm = field(default_factory=lambda: tqdm(disable=True))

    def subject(self, candidate: Candidate) -> dict[str, Any]:
        """All that a candidate's scores depend on."""
        subject = {
            "name": candidate.name,
            "sampler": candidate.sampler,
            "sampling_steps": candidate.sampling_steps,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "features": self.extractor.name,
        }
        if candidate.path:
            subject |= {"clip": self.config.sampling.clip, "precision": self.compute.precision}
            subject["checkpoint_sha256"] = fingerprint(candidate.path)
        if candidate.sampler == "ddim":
            subject["teacher_sha256"] = self._teacher_sha256
        if candidate.sampler == "ancestral":
            subject["variance"] = self.config.sampling.variance_fraction
        return subject

    def judge(self, candidate: Candidate) -> dict[str, Any]:
        """The results of a candidate: found in the file, or computed and added to it."""
        subject = self.subject(candidate)
        if entry := self.results.find(subject):
            return entry
        self.bar.set_description(str(candidate))
        found: dict[str, Any] = {"checkpoint": str(candidate.path) if candidate.path else None}
        found |= asdict(self._metrics.score(self._pictures(candidate, found)))
        self.results.add(subject | found)
        return subject | found

    def num_network_evaluations(self, candidates: list[Candidate]) -> int:
        """How much there is to do for those that are not in the file: batches times steps."""
        missing = [c for c in candidates if c.path and not self.results.find(self.subject(c))]
        count = sum(c.sampling_steps for c in missing) * num_batches(self.num_samples, self.batch_size)
        if any(c.sampler == "ddim" for c in missing) and "_reference" not in vars(self):
            count += self.teacher.default_sampling_steps * num_batches(NUM_COMPARED, self.batch_size)
        return count

    def fewest_steps(self) -> int:
        """The fewest steps, a power of two, with which the teacher draws the pictures that it draws with 1024.

        They are the same if they differ by less than `SAME_PICTURE`, and so do those of all greater powers of two.
        """
        subject = {
            "name": "fewest steps",
            "teacher_sha256": self._teacher_sha256,
            "clip": self.config.sampling.clip,
            "precision": self.compute.precision,
            "seed": self.seed,
            "same_picture": SAME_PICTURE,
            "num_samples": NUM_COMPARED,
        }
        entry = self.results.find(subject)
        if entry is None:
            steps, distances = self.teacher.default_sampling_steps, {}
            while steps > 1:
                candidate = Candidate("teacher", self.teacher.path, "ddim", steps // 2)
                self.bar.set_description(f"{candidate}, is it as good as {self.teacher.default_sampling_steps}?")
                pictures = torch.cat(list(self._draw(candidate, NUM_COMPARED)))
                distances[steps // 2] = float((pictures - self._reference).square().mean().sqrt())
                if distances[steps // 2] >= SAME_PICTURE:
                    break
                steps //= 2
            entry = subject | {"steps": steps, "distances": distances}
            self.results.add(entry)
        return entry["steps"]

    @cached_property
    def _teacher_sha256(self) -> str:
        return fingerprint(self.teacher.path)  # once: every row is also about the teacher, and its file may be large

    @cached_property
    def _metrics(self) -> QualityMetrics:
        batches = (images.to(self.compute.device) for images in self.test_images.split(self.batch_size))
        return QualityMetrics(self.extractor, batches, self.num_samples, self.compute.device)

    @cached_property
    def _reference(self) -> Tensor:
        steps = self.teacher.default_sampling_steps
        self.bar.set_description(f"teacher, ddim, {steps} steps, to compare with")
        return torch.cat(list(self._draw(Candidate("teacher", self.teacher.path, "ddim", steps), NUM_COMPARED)))

    def _pictures(self, candidate: Candidate, found: dict[str, Any]) -> Iterator[Tensor]:
        """The pictures of a candidate in batches of uint8; what drawing them shows is added to `found`."""
        if candidate == TRAINING_IMAGES:
            yield from self._training_images()
        elif candidate == UNIFORM_NOISE:
            yield from self._uniform_noise()
        else:
            yield from self._samples(candidate, found)

    def _training_images(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed_of("training images", self.seed))
        chosen = torch.randperm(len(self.training_images), generator=generator)[: self.num_samples]
        for indices in chosen.split(self.batch_size):
            yield self.training_images[indices].to(self.compute.device)

    def _uniform_noise(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed_of("uniform noise", self.seed))
        for batch in torch.arange(self.num_samples).split(self.batch_size):
            shape = (len(batch), *self.test_images.shape[1:])
            yield torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(self.compute.device)

    def _samples(self, candidate: Candidate, found: dict[str, Any]) -> Iterator[Tensor]:
        if self.compute.compiles:  # before the clock runs
            list(self._draw(replace(candidate, sampling_steps=1), self.batch_size, tick=int))
        seconds, squared, compared = 0.0, 0.0, 0
        start = time.perf_counter()
        for x in self._draw(candidate, self.num_samples):
            if self.compute.device.type != "cpu":
                torch.accelerator.synchronize()
            seconds += time.perf_counter() - start
            if candidate.sampler == "ddim" and compared < NUM_COMPARED:
                reference = self._reference[compared : compared + len(x)]
                squared += float((x[: len(reference)] - reference).square().mean(dim=(1, 2, 3)).sum())
                compared += len(reference)
            yield to_bytes(x)
            start = time.perf_counter()
        found |= {"device": str(self.compute.device), "seconds_per_picture": seconds / self.num_samples}
        found["distance"] = math.sqrt(squared / compared) if compared else None

    def _draw(self, candidate: Candidate, count: int, tick: Callable[[], object] | None = None) -> Iterator[Tensor]:
        sampling = {"sampler": candidate.sampler, "batch_size": self.batch_size}
        model = load_checkpoint(candidate.path).model(self.compute.device)
        return sample_batches(
            self.compute.for_inference(model, self.batch_size),
            self.config.model_copy(update={"sampling": self.config.sampling.model_copy(update=sampling)}),
            range(count),
            sampling_steps=candidate.sampling_steps,
            seed=self.seed,
            device=self.compute.device,
            tick=tick or self.bar.update,
        )
