"""What can be evaluated: models at a number of steps, and what they are compared with."""

from dataclasses import dataclass
from pathlib import Path


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
