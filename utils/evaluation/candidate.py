"""What can be evaluated: models at a number of steps, and what they are compared with."""

from dataclasses import dataclass, replace
from pathlib import Path

BASE_STEPS = 32  # rows of more DDIM steps are scored by how a few of their pictures differ from those of half the steps


@dataclass(frozen=True)
class Candidate:
    """A row of the table: the pictures of a checkpoint at a number of steps, or, without one, those of a baseline."""

    name: str
    path: Path | None = None
    sampler: str | None = None
    sampling_steps: int | None = None
    guidance: float = 1.0
    evaluations_per_step: int = 1

    def __str__(self) -> str:
        if self.path is None:
            return self.name
        text = f"{self.name}, {self.sampler}, {self.sampling_steps} step{'s' if self.sampling_steps > 1 else ''}"
        return text if self.guidance == 1 else f"{text}, guidance {self.guidance:g}"


TRAINING_IMAGES, UNIFORM_NOISE = Candidate("training images"), Candidate("uniform noise")


def base_of(candidate: Candidate) -> Candidate:
    """The row of half as many steps, but at least `BASE_STEPS`, from which a candidate's difference is measured."""
    return replace(candidate, sampling_steps=max(BASE_STEPS, candidate.sampling_steps // 2))


def num_pictures(sampler: str | None, sampling_steps: int | None, num_samples: int, num_few: int) -> int:
    """How many pictures of a row are drawn: `num_samples`, or fewer where a difference from the row before will do.

    With twice the steps DDIM's error is half, and so are the differences of pictures, and of their scores: half as many
    pictures cost as much and say more (multilevel Monte Carlo, Giles 2008). Below a quarter of `num_few`, FID would
    have too few pictures for its covariance.
    """
    if sampler != "ddim" or sampling_steps <= BASE_STEPS or num_few >= num_samples:
        return num_samples
    return min(num_few, max(num_few * 2 * BASE_STEPS // sampling_steps, -(-num_few // 4)))
