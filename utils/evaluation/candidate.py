"""What can be evaluated: models at a number of steps, and what they are compared with."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

BASE_STEPS = 32  # rows of more DDIM steps are scored by how a few of their pictures differ from those of half the steps

# With few pictures for each feature FID hardly knows their covariance, and the difference of two comes out too small:
# by a tenth or so with 4, while with fewer than 1 it may have the wrong sign.
PICTURES_PER_FEATURE = 4


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


@dataclass(frozen=True)
class NumPictures:
    """How many pictures of each row are drawn: `num_samples`, or fewer where its difference from another row will do.

    So it is for the teacher, whose error by DDIM halves with twice the steps, and with it the differences of pictures
    and scores: half as many pictures then say more, for the same work (multilevel Monte Carlo, Giles 2008). It is not
    for students, which are made for one number of steps.
    """

    num_samples: int
    num_few: int
    num_features: int

    @property
    def least_few(self) -> int:
        """The least pictures of a row that is scored by its difference from another."""
        return PICTURES_PER_FEATURE * self.num_features

    @property
    def most_few(self) -> int:
        """The most pictures of such a row."""
        return max(self.num_few, self.least_few)

    def _is_in_chain(self, candidate: Candidate) -> bool:
        """Whether a row is scored by its difference from another, or may be the one from which that is measured."""
        is_of_teacher = candidate.name == "teacher" and candidate.sampler == "ddim"
        return is_of_teacher and candidate.sampling_steps >= BASE_STEPS and self.most_few < self.num_samples

    def of(self, candidate: Candidate) -> int:
        """The number of pictures of a row."""
        if not self._is_in_chain(candidate) or candidate.sampling_steps == BASE_STEPS:
            return self.num_samples
        few = self.num_few * 2 * BASE_STEPS // max(candidate.sampling_steps, 2 * BASE_STEPS)
        return max(few, self.least_few)

    def base_of(self, candidate: Candidate) -> Candidate | None:
        """The row from which a row's difference is measured, of half as many steps; None if it is scored alone."""
        if self.of(candidate) == self.num_samples:
            return None
        return replace(candidate, sampling_steps=max(BASE_STEPS, candidate.sampling_steps // 2))

    def kept_of(self, candidate: Candidate) -> int:
        """Of how many pictures the features are kept, for rows whose base this is: as many as any needs, or none."""
        return min(self.most_few, self.of(candidate)) if self._is_in_chain(candidate) else 0

    def to_draw(self, candidates: Iterable[Candidate], is_there: Callable[[Candidate], bool]) -> dict[Candidate, int]:
        """How many pictures of which rows are drawn for these, if those that are there already are not."""
        rows: dict[Candidate, int] = {}
        bases: dict[Candidate, int] = {}

        def add(candidate: Candidate) -> None:
            if candidate.path and candidate not in rows and not is_there(candidate):
                rows[candidate] = self.of(candidate)
                if base := self.base_of(candidate):
                    bases[base] = self.kept_of(base)
                    add(base)

        for candidate in candidates:
            add(candidate)
        return bases | rows
