"""FID and KID: distances between the features of samples and of real images."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from utils.data.image_set import ImageSet, to_unit_range
from utils.errors import InputError
from utils.evaluation.classifier import NUM_FEATURES, load_classifier
from utils.process.randomness import seed_of

INCEPTION_FEATURES = 2048
Features = tuple[Tensor, Tensor | None]  # [B, num_features], and classes [B] if the extractor knows any
KID_SUBSET_SIZE = 1000  # as in Binkowski et al. 2018; less where there are fewer pictures


@dataclass(frozen=True)
class Extractor:
    """A feature extractor: uint8 images [B, C, H, W] to features [B, num_features], and classes [B] if it knows any.

    Attributes:
        name: changes whenever the features of an image may.
    """

    name: str
    num_features: int
    num_classes: int
    extract: Callable[[Tensor], Features]


def classifier_features(name: str, training: ImageSet, test: ImageSet, device: torch.device) -> Extractor:
    """The features of a small classifier of the data set of that name: see utils/evaluation/classifier.py."""
    classifier, name = load_classifier(name, training, test, device)

    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        features = classifier.features(to_unit_range(images))
        return features, classifier.head(features).argmax(dim=1)

    return Extractor(name, NUM_FEATURES, classifier.head.out_features, extract)


def inception_features(_name: str, _training: ImageSet, _test: ImageSet, device: torch.device) -> Extractor:
    """The features of Inception v3 that FID is usually reported with; grey images become grey colours.

    Raises:
        InputError: the package torch-fidelity, or its weights, cannot be had.
    """
    try:
        inception = FrechetInceptionDistance(feature=INCEPTION_FEATURES).inception.to(device)
    except ModuleNotFoundError as error:
        raise InputError(
            "--features inception: needs the package torch-fidelity: pip install torch-fidelity"
        ) from error
    except (URLError, OSError) as error:
        raise InputError(
            f"--features inception: its weights cannot be fetched ({' '.join(str(error).split()):.100}); "
            "--features classifier needs no network"
        ) from error

    def extract(images: Tensor) -> tuple[Tensor, None]:
        return inception(images.expand(-1, 3, -1, -1)), None

    return Extractor("inception-v3-2048", INCEPTION_FEATURES, 0, extract)


EXTRACTORS = {"classifier": classifier_features, "inception": inception_features}


class _Precomputed(nn.Module):
    """The network that torchmetrics asks for: it returns its input, features that were computed for all metrics."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


@dataclass(frozen=True)
class Scores:
    """The scores of a set of pictures; lower is better, and 0 is best, for all but `classes`.

    Attributes:
        fid: the Frechet distance of the features (Heusel et al. 2017), squared, as is usual.
        fid_share: the same as a share of the trace of the real features' covariance: independent of their scale.
        kid, kid_std: the kernel distance (Binkowski et al. 2018), unbiased: mean and deviation over 100 subsets.
        classes: the share of each class that the classifier sees, None without a classifier.
        class_distance: the total variation distance between these shares and those of the real images.
    """

    fid: float
    fid_share: float
    kid: float
    kid_std: float
    classes: list[float] | None
    class_distance: float | None


class QualityMetrics:
    """Compares sets of pictures with one set of real images, whose features are kept."""

    def __init__(self, extractor: Extractor, real: Iterable[Features], device: torch.device):
        """
        Args:
            extractor: whose features they are.
            real: the features of the real images, in batches; there must be two images at least.
        """
        self.extractor = extractor
        options = {
            "feature": _Precomputed(extractor.num_features),
            "reset_real_features": False,
            "sync_on_compute": False,  # every process is given the features of all
        }
        self.fid = FrechetInceptionDistance(**options).to(device)
        with warnings.catch_warnings(action="ignore"):  # that it keeps all features; they are few KB an image
            self.kid = KernelInceptionDistance(**options).to(device)
        self.real_classes = self._update(real, real=True)
        num_real = int(self.fid.real_features_num_samples)
        mean = self.fid.real_features_sum / num_real
        scatter = self.fid.real_features_cov_sum.trace() - num_real * mean.square().sum()
        self.real_trace = float(scatter / (num_real - 1))

    @torch.inference_mode()
    def _update(self, batches: Iterable[Features], *, real: bool) -> Tensor | None:
        """Adds images to both metrics; their share in each class, on the CPU."""
        counts = torch.zeros(self.extractor.num_classes, dtype=torch.float64)
        for features, classes in batches:
            self.fid.update(features.to(self.fid.device), real=real)
            self.kid.update(features.to(self.kid.device), real=real)
            if classes is not None:
                counts += classes.bincount(minlength=len(counts)).cpu()
        return counts / counts.sum() if self.extractor.num_classes else None

    def score(self, batches: Iterable[Features]) -> Scores:
        """The scores of pictures whose features come in batches; there must be two pictures at least."""
        self.fid.reset()
        self.kid.reset()
        classes = self._update(batches, real=False)
        fid = float(self.fid.compute())
        counts = (self.fid.real_features_num_samples, self.fid.fake_features_num_samples)
        self.kid.subset_size = min(KID_SUBSET_SIZE, *map(int, counts))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("kid"))
            kid, kid_std = map(float, self.kid.compute())
        return self._scores(fid, kid, kid_std, classes)

    def score_by_difference(self, of_others: Scores, few: Scores, few_of_others: Scores) -> Scores:
        """The scores of pictures of which only a few were drawn, by how these differ from others of the same noise.

        A control variate: FID depends on the number of pictures, and by chance on which, but where both sets resemble
        each other picture by picture, and are several times as many as the features, it does so much alike in both.

        Args:
            of_others: the scores of all the others; the deviation of their KID is kept.
            few, few_of_others: the scores of the few pictures, and of as many others, from the same noise.
        """

        def corrected(name: str) -> Tensor:
            of_all, of_few, of_same_few = (
                torch.tensor(getattr(scores, name), dtype=torch.float64) for scores in (of_others, few, few_of_others)
            )
            return of_all + of_few - of_same_few

        classes = None
        if of_others.classes is not None:
            classes = corrected("classes").clamp(min=0)
            classes /= classes.sum()
        return self._scores(float(corrected("fid")), float(corrected("kid")), of_others.kid_std, classes)

    def _scores(self, fid: float, kid: float, kid_std: float, classes: Tensor | None) -> Scores:
        distance = None if classes is None else float((classes - self.real_classes).abs().sum() / 2)
        shares = None if classes is None else classes.tolist()
        return Scores(fid, fid / self.real_trace, kid, kid_std, shares, distance)
