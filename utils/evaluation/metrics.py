"""The metrics of `METRICS`, which compare features of samples with those of real images, and the feature extractors.

A further metric is a function of two `Features`, and a line of `METRICS`.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from utils.data.images import ImageSet, to_unit_range
from utils.evaluation.classifier import load_classifier
from utils.system.errors import InputError
from utils.system.seeds import seed_of

INCEPTION_FEATURES = 2048
KID_SUBSET_SIZE = 1000  # as in Binkowski et al. 2018; less for fewer samples


class Features(NamedTuple):
    """What an extractor finds in N images.

    Attributes:
        features: [N, num_features] on the CPU.
        classes: the classes [N] that it sees; None if it does not classify.
        labels: the classes [N] that the samples were conditioned on; None if there were none.
    """

    features: Tensor
    classes: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """A feature extractor.

    Attributes:
        name: changes whenever the features of an image may.
        num_classes: 0 if it does not classify.
        extract: maps uint8 images [B, C, H, W] to features [B, num_features], and classes [B] or None.
    """

    name: str
    num_classes: int
    extract: Callable[[Tensor], tuple[Tensor, Tensor | None]]


def classifier_features(name: str, training: ImageSet, test: ImageSet, device: torch.device) -> Extractor:
    """The features of a small classifier of the data set of that name: see utils/evaluation/classifier.py."""
    classifier, name = load_classifier(name, training, test, device)

    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        features = classifier.features(to_unit_range(images))
        return features, classifier.head(features).argmax(dim=1)

    return Extractor(name, classifier.head.out_features, extract)


def inception_features(_name: str, _training: ImageSet, _test: ImageSet, device: torch.device) -> Extractor:
    """The features of Inception v3, the usual ones for FID; grey images are converted to RGB.

    Raises:
        InputError: the package torch-fidelity, or its weights, are not available.
    """
    try:
        inception = FrechetInceptionDistance(feature=INCEPTION_FEATURES).inception.to(device)
    except ModuleNotFoundError as error:
        raise InputError(
            "--features inception: needs the package torch-fidelity: pip install torch-fidelity"
        ) from error
    except (URLError, OSError) as error:
        raise InputError(
            f"--features inception: its weights cannot be downloaded ({' '.join(str(error).split()):.100}); "
            "--features classifier needs no network"
        ) from error
    return Extractor("inception-v3-2048", 0, lambda images: (inception(images.expand(-1, 3, -1, -1)), None))


EXTRACTORS = {"classifier": classifier_features, "inception": inception_features}


class _Precomputed(nn.Module):
    """Stands for the network that torchmetrics expects: returns its input, which is already the features."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def fid(real: Features, samples: Features) -> dict[str, float]:
    """The squared Frechet distance of the features (Heusel et al. 2017); lower is better, 0 is best.

    `fid_share` is the same divided by the trace of the real features' covariance, which is independent of their scale.
    """
    metric = _updated(FrechetInceptionDistance, real, samples)
    distance, trace = float(metric.compute()), float(real.features.double().var(dim=0).sum())
    return {"fid": distance, "fid_share": distance / trace}


def kid(real: Features, samples: Features) -> dict[str, float]:
    """The unbiased kernel distance (Binkowski et al. 2018): mean and standard deviation over 100 subsets."""
    with warnings.catch_warnings(action="ignore"):  # that it keeps all features; they are few KB an image
        metric = _updated(KernelInceptionDistance, real, samples)
    metric.subset_size = min(KID_SUBSET_SIZE, len(real.features), len(samples.features))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("kid"))
        mean, deviation = metric.compute()
    return {"kid": float(mean), "kid_std": float(deviation)}


def _updated(metric_class: type, real: Features, samples: Features) -> Any:
    metric = metric_class(feature=_Precomputed(real.features.shape[1]), sync_on_compute=False)
    metric.update(real.features, real=True)
    metric.update(samples.features, real=False)
    return metric


def class_distance(real: Features, samples: Features) -> dict[str, Any]:
    """The shares of the classes, and the total variation distance between those of samples and real images."""
    if real.classes is None or samples.classes is None:
        return {"classes": None, "class_distance": None}
    count = int(max(real.classes.max(), samples.classes.max())) + 1
    of_real, of_samples = (
        each.classes.bincount(minlength=count).double() / len(each.classes) for each in (real, samples)
    )
    return {"classes": of_samples.tolist(), "class_distance": float((of_samples - of_real).abs().sum() / 2)}


def label_accuracy(_real: Features, samples: Features) -> dict[str, float | None]:
    """The share of samples that the classifier assigns to the class that they were conditioned on; 1 is best."""
    if samples.classes is None or samples.labels is None:
        return {"right": None}
    return {"right": float((samples.classes == samples.labels).double().mean())}


@dataclass(frozen=True)
class Metric:
    """A metric and its column in the table.

    Attributes:
        compute: of the features of real images and of samples, at least two of each; results by name.
        width: of the column.
        cell: formats a row's results for the table.
    """

    compute: Callable[[Features, Features], dict[str, Any]]
    width: int
    cell: Callable[[dict[str, Any]], str]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


# by heading
METRICS = {
    "FID": Metric(fid, 8, lambda row: f"{row['fid']:.3f}"),
    "KID x 1000": Metric(kid, 16, lambda row: f"{1000 * row['kid']:.2f} ± {1000 * row['kid_std']:.2f}"),
    "classes": Metric(class_distance, 8, lambda row: _percent(row["class_distance"])),
    "right": Metric(label_accuracy, 7, lambda row: _percent(row["right"])),
}
