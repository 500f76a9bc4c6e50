"""Evaluates models: features of their pictures against those of the test images; nothing is computed twice."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from utils.checkpoint_files import load_checkpoint
from utils.checkpoints import Checkpoint
from utils.compute import Compute
from utils.data.image_set import content_hash
from utils.evaluation.candidate import TRAINING_IMAGES, UNIFORM_NOISE, Candidate, NumPictures
from utils.evaluation.metrics import Extractor, Features, QualityMetrics, Scores
from utils.evaluation.results import Results
from utils.files import sha256
from utils.process.distributed import all_gather, distributed_map, tasks_per_rank
from utils.process.randomness import seed_of
from utils.sampling import batches_of, draw_all, draw_batch
from utils.schema import Config

NUM_COMPARED = 64  # pictures that are kept, of the teacher at 1024 steps, to be compared with others pixel by pixel
SAME_PICTURE = 0.01  # root mean squared difference, in [-1, 1], below which pictures are the same: 1.3 of 255 greys


def to_bytes(x: Tensor) -> Tensor:
    """Pictures in [-1, 1] (values beyond are cut) as uint8, as a PNG would hold them."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte()


def first(features: Features, count: int) -> Features:
    """Those of the first so many pictures, copied, so that the others need not be kept."""
    of_all, classes = features
    return of_all[:count].clone(), None if classes is None else classes[:count].clone()


@dataclass
class Evaluation:
    """Evaluates candidates with one number of samples and one seed, and keeps the results in a file.

    The batches are divided among the ranks; each is given the features of all, and so finds the same results.

    Attributes:
        num_few: pictures of a row of 64 DDIM steps, or more where there are many features: see `NumPictures`.
        teacher: what DDIM pictures are compared with, at 1024 steps, from the same noise.
        compared_guidance: the scale at which they are; at each further one it would be 2048 evaluations more.
        batch_size: pictures drawn at once; it changes speed and rounding, so results are shared between batch sizes.
    """

    config: Config
    teacher: Checkpoint
    training_images: Tensor
    test_images: Tensor
    extractor: Extractor
    results: Results
    num_samples: int
    num_few: int
    seed: int
    batch_size: int
    compute: Compute
    bar: tqdm = field(default_factory=lambda: tqdm(disable=True))
    compared_guidance: float = 1.0
    reference: Tensor | None = None
    few_features: dict[Candidate, Features] = field(default_factory=dict)

    def key(self, candidate: Candidate) -> dict[str, Any]:
        """Everything that a candidate's scores depend on: what its results are found by in the file."""
        key = {
            "name": candidate.name,
            "sampler": candidate.sampler,
            "sampling_steps": candidate.sampling_steps,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "guidance": candidate.guidance,
            "features": self.extractor.name,
            "reference": self._reference_hash,
        }
        if candidate == TRAINING_IMAGES:
            key["training_images"] = content_hash(self.training_images)
        if candidate.path:
            key |= {"clip": self.config.sampling.clip, "precision": self.compute.precision}
            key["checkpoint_sha256"] = self._sha256_of(candidate.path)
        if self._is_compared(candidate):
            key["teacher_sha256"] = self.teacher.sha256
        if candidate.sampler == "ancestral":
            key["variance"] = self.config.sampling.variance_fraction
        base = self._num_pictures.base_of(candidate)
        return key | {"num_few": base and self._num_pictures.most_few, "base_steps": base and base.sampling_steps}

    def evaluate(self, candidate: Candidate) -> dict[str, Any]:
        """The results of a candidate: found in the file, or computed and added to it."""
        key = self.key(candidate)
        if entry := self.results.find(key):
            return entry
        found: dict[str, Any] = {"checkpoint": str(candidate.path) if candidate.path else None}
        found |= {"distance": None, "right": None, "guidance": candidate.guidance}
        found |= asdict(self._score(candidate, found))
        self.results.add(key | found)
        return key | found

    def num_network_evaluations(self, candidates: list[Candidate]) -> int:
        """How often a rank runs the network for those that are not in the file: batches times steps."""
        drawn = list(self._num_pictures.to_draw(candidates, lambda c: bool(self.results.find(self.key(c)))).items())
        if self.reference is None and any(self._is_compared(candidate) for candidate, _ in drawn):
            drawn.append((self._reference_candidate(), NUM_COMPARED))
        return sum(
            candidate.sampling_steps * candidate.evaluations_per_step * tasks_per_rank(self._batches(count))
            for candidate, count in drawn
        )

    def fewest_steps(self) -> int:
        """The fewest steps, a power of two, with which the teacher draws the pictures that it draws with 1024.

        They are the same if they differ by less than `SAME_PICTURE`; with more steps, DDIM comes nearer still.
        """
        key = {
            "name": "fewest steps",
            "guidance": self.compared_guidance,
            "teacher_sha256": self.teacher.sha256,
            "clip": self.config.sampling.clip,
            "precision": self.compute.precision,
            "seed": self.seed,
            "same_picture": SAME_PICTURE,
            "num_samples": NUM_COMPARED,
        }
        entry = self.results.find(key)
        if entry is None:
            pictures, distances, steps = self._reference(), {}, 1
            most = self._reference_candidate()
            while steps < most.sampling_steps:
                candidate = replace(most, sampling_steps=steps)
                self.bar.set_description(f"{candidate}, is it as good as {most.sampling_steps}?")
                distances[steps] = float((self._first_pictures(candidate) - pictures).square().mean().sqrt())
                if distances[steps] < SAME_PICTURE:
                    break
                steps *= 2
            entry = key | {"steps": min(steps, most.sampling_steps), "distances": distances}
            self.results.add(entry)
        return entry["steps"]

    @cached_property
    def _reference_hash(self) -> str:
        return content_hash(self.test_images)

    @cached_property
    def _sha256_of(self) -> Callable[[Path], str]:
        return cache(sha256)  # files may be large

    @cached_property
    def _metrics(self) -> QualityMetrics:
        real = self._extract(len(self.test_images), lambda indices: self.test_images[indices.start : indices.stop])
        device = self.compute.device if self.compute.device.type != "mps" else torch.device("cpu")  # needs float64
        return QualityMetrics(self.extractor, real, device)

    @cached_property
    def _num_pictures(self) -> NumPictures:
        return NumPictures(self.num_samples, self.num_few, self.extractor.num_features)

    def _score(self, candidate: Candidate, found: dict[str, Any]) -> Scores:
        """The scores of a candidate; what else is measured of its pictures is added to `found`."""
        base, count = self._num_pictures.base_of(candidate), self._num_pictures.of(candidate)
        of_base = self.evaluate(base) if base else None
        features = self._features(candidate, count, found)
        scores = self._metrics.score([features])
        if candidate.path:
            found["right"] = self._share_of_right(features)
        if base is None:
            return scores
        few_of_base = self._few_features(base, count)
        if found["right"] is not None:
            found["right"] += of_base["right"] - self._share_of_right(few_of_base)
            found["right"] = min(max(found["right"], 0.0), 1.0)
        of_all = Scores(**{each.name: of_base[each.name] for each in fields(Scores)})
        return self._metrics.score_by_difference(of_all, scores, self._metrics.score([few_of_base]))

    def _few_features(self, candidate: Candidate, count: int) -> Features:
        if candidate not in self.few_features:  # the row was in the file
            self._features(candidate, self._num_pictures.kept_of(candidate), {})
        return first(self.few_features[candidate], count)

    def _batches(self, count: int) -> list[range]:
        return batches_of(count, self.batch_size)

    def _is_compared(self, candidate: Candidate) -> bool:
        return candidate.sampler == "ddim" and candidate.guidance == self.compared_guidance

    def _reference_candidate(self) -> Candidate:
        guidance = self.compared_guidance
        steps, evaluations = self.teacher.default_sampling_steps, self.teacher.evaluations_per_step(guidance)
        return Candidate("teacher", self.teacher.path, "ddim", steps, guidance, evaluations)

    def _reference(self) -> Tensor:
        if self.reference is None:
            candidate = self._reference_candidate()
            self.bar.set_description(f"{candidate}, to compare with")
            self.reference = self._first_pictures(candidate)
        return self.reference

    def _sampler(self, candidate: Candidate) -> Callable[..., Tensor]:
        """A function that draws the pictures of given indices, [B, C, H, W] in [-1, 1]."""
        sampling = {"sampler": candidate.sampler, "batch_size": self.batch_size}
        model = load_checkpoint(candidate.path).model(self.compute.device)
        return partial(
            draw_batch,
            self.compute.for_inference(model, self.batch_size),
            self.config.model_copy(update={"sampling": self.config.sampling.model_copy(update=sampling)}),
            sampling_steps=candidate.sampling_steps,
            guidance=candidate.guidance,
            seed=self.seed,
            device=self.compute.device,
            tick=self.bar.update,
        )

    def _first_pictures(self, candidate: Candidate) -> Tensor:
        """The first `NUM_COMPARED` pictures, on the CPU of every rank."""
        return draw_all(self._sampler(candidate), NUM_COMPARED, self.batch_size)

    def _extract(self, count: int, images_of: Callable[[range], Tensor]) -> Iterator[Features]:
        """The features of so many images; `images_of` gives those of a batch, as uint8 [B, C, H, W]."""

        def features(indices: range) -> Features:
            found, classes = self.extractor.extract(images_of(indices).to(self.compute.device))
            return found.cpu(), classes if classes is None else classes.cpu()

        return distributed_map(features, self._batches(count))

    @torch.inference_mode()
    def _features(self, candidate: Candidate, count: int, found: dict[str, Any]) -> Features:
        """The features of a candidate's first pictures; what else is measured of them is added to `found`."""
        self.bar.set_description(str(candidate))
        if candidate == TRAINING_IMAGES:
            generator = torch.Generator().manual_seed(seed_of("training images", self.seed))
            chosen = torch.randperm(len(self.training_images), generator=generator)
            batches = self._extract(count, lambda indices: self.training_images[chosen[list(indices)]])
        elif candidate == UNIFORM_NOISE:
            batches = self._extract(count, self._uniform_noise)
        else:
            batches = self._features_of_samples(candidate, count, found)
        features, classes = (None if parts[0] is None else torch.cat(parts) for parts in zip(*batches, strict=True))
        if few := self._num_pictures.kept_of(candidate):
            self.few_features[candidate] = first((features, classes), few)
        return features, classes

    def _uniform_noise(self, indices: range) -> Tensor:
        generators = (torch.Generator().manual_seed(seed_of("uniform noise", self.seed, index=i)) for i in indices)
        shape = self.test_images.shape[1:]
        return torch.stack([torch.randint(256, shape, generator=g, dtype=torch.uint8) for g in generators])

    def _features_of_samples(self, candidate: Candidate, count: int, found: dict[str, Any]) -> Iterator[Features]:
        reference = self._reference() if self._is_compared(candidate) else None
        draw, seconds, squared, evaluations = self._sampler(candidate), 0.0, 0.0, 0
        if self.compute.compiles:  # before the clock runs
            draw(range(self.batch_size), sampling_steps=1, tick=int)

        def tick() -> None:
            nonlocal evaluations
            evaluations += 1
            self.bar.update()

        def pictures(indices: range) -> Tensor:
            nonlocal seconds, squared
            start = time.perf_counter()
            x = draw(indices, tick=tick)
            if self.compute.device.type != "cpu":
                torch.accelerator.synchronize()
            seconds += time.perf_counter() - start
            if reference is not None and indices.start < NUM_COMPARED:
                compared = reference[indices.start : indices.stop].to(x.device)
                squared += float((x[: len(compared)] - compared).square().mean(dim=(1, 2, 3)).sum())
            return to_bytes(x)

        yield from self._extract(count, pictures)
        found["pictures"] = count
        found["evaluations"] = sum(all_gather(evaluations)) / len(self._batches(count))
        found["device"] = str(self.compute.device)
        found["seconds_per_picture"] = sum(all_gather(seconds)) / count
        if reference is not None:
            found["distance"] = math.sqrt(sum(all_gather(squared)) / min(NUM_COMPARED, count))

    def _share_of_right(self, features: Features) -> float | None:
        """The share of the first pictures in which the classifier sees the class that was asked for."""
        num_classes, (_, classes) = self.config.network.num_classes, features
        if classes is None or not num_classes or num_classes != self.extractor.num_classes:
            return None
        return float((classes == torch.arange(len(classes)) % num_classes).double().mean())
