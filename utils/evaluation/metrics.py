"""The metrics, which compare features of samples with those of real images, and the feature extractors.

A further metric is a function of two `Features`, and its name in `METRICS`; the table has a column for each number.
"""

import warnings
from collections.abc import Callable
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
NEIGHBOURS = 5
KID_SUBSET_SIZE = 1000  # as in Binkowski et al. 2018; at most half of the images, so that subsets differ


class Features(NamedTuple):
    """What an extractor finds in N images."""

    features: Tensor  # [N, num_features] on the CPU
    classes: Tensor | None = None  # the classes [N] that it sees, if it classifies
    labels: Tensor | None = None  # the classes [N] that the samples were conditioned on, if they were


class Extractor(NamedTuple):
    """Maps uint8 images [B, C, H, W] to features [B, num_features], and classes [B] or None."""

    name: str  # changes whenever the features of an image may
    num_classes: int  # 0 if it does not classify
    extract: Callable[[Tensor], tuple[Tensor, Tensor | None]]


def classifier_features(name: str, training: ImageSet, test: ImageSet, device: torch.device) -> Extractor:
    """The features of a small classifier of the data set of that name: see utils/evaluation/classifier.py."""
    classifier, name = load_classifier(name, training, test, device)

    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        features = classifier.features(to_unit_range(images))
        return features, classifier.head(features).argmax(dim=1)

    return Extractor(name, classifier.head.out_features, extract)


def inception_features(_name: str, _training: ImageSet, _test: ImageSet, device: torch.device) -> Extractor:
    """The features of Inception v3, the usual ones for FID; grey images are converted to RGB."""
    try:
        inception = FrechetInceptionDistance(feature=INCEPTION_FEATURES).inception.to(device)
    except ModuleNotFoundError as error:
        raise InputError("--features inception: needs a package: pip install torch-fidelity") from error
    except (URLError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--features inception: its weights cannot be downloaded ({reason:.100})") from error
    return Extractor("inception-v3-2048", 0, lambda images: (inception(images.expand(-1, 3, -1, -1)), None))


EXTRACTORS = {"classifier": classifier_features, "inception": inception_features}


class _Precomputed(nn.Module):
    """Takes the place of the network in torchmetrics: returns its input, the features."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def fid(real: Features, samples: Features) -> dict[str, float]:
    """The squared Frechet distance of the features (Heusel et al. 2017); lower is better, 0 is best.

    `fid_share` is the same divided by the trace of the real features' covariance, which is independent of their scale;
    None if that is 0.
    """
    metric = _updated(FrechetInceptionDistance, real, samples)
    distance = max(float(metric.compute()), 0.0)  # rounding may make it negative
    trace = float(real.features.double().var(dim=0).sum())
    return {"fid": distance, "fid_share": distance / trace if trace else None}


def kid(real: Features, samples: Features) -> dict[str, float]:
    """The unbiased kernel distance (Binkowski et al. 2018): mean and standard deviation over 100 subsets."""
    with warnings.catch_warnings(action="ignore"):  # that it keeps all features; they are few KB an image
        metric = _updated(KernelInceptionDistance, real, samples)
    fewest = min(len(real.features), len(samples.features))
    metric.subset_size = min(KID_SUBSET_SIZE, max(fewest // 2, 2))
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
    """The total variation distance between the class shares of samples and of real images, and those of the samples."""
    if real.classes is None or samples.classes is None:
        return {"class_distance": None, "classes": None}
    count = int(max(real.classes.max(), samples.classes.max())) + 1
    shares = [each.classes.bincount(minlength=count).double() / len(each.classes) for each in (real, samples)]
    return {"class_distance": float((shares[1] - shares[0]).abs().sum() / 2), "classes": shares[1].tolist()}


def label_accuracy(_real: Features, samples: Features) -> dict[str, float | None]:
    """The share of samples that the classifier assigns to the class that they were conditioned on; 1 is best."""
    if samples.classes is None or samples.labels is None:
        return {"right": None}
    return {"right": float((samples.classes == samples.labels).double().mean())}


def diversity(real: Features, samples: Features) -> dict[str, float]:
    """Which share of real images is like some sample, by `NEIGHBOURS`, with as many of each; 1 is best.

    `recall` (Kynkaanniemi et al. 2019): those nearer to a sample than its k-th nearest sample is. `coverage` (Naeem et
    al. 2020): those that have a sample nearer than their own k-th nearest real image.
    """
    count = min(len(real.features), len(samples.features))
    generator = torch.Generator().manual_seed(seed_of("diversity"))

    def some(features: Tensor) -> Tensor:  # not the first ones: the images of a folder are in order of class
        return features[torch.randperm(len(features), generator=generator)[:count]]

    reals, drawn = some(real.features), some(samples.features)
    k = min(NEIGHBOURS, count - 1) + 1  # each is its own nearest
    between = torch.cdist(reals, drawn)
    recalled = (between < torch.cdist(drawn, drawn).kthvalue(k).values).any(dim=1)
    covered = between.amin(dim=1) < torch.cdist(reals, reals).kthvalue(k).values
    return {"recall": float(recalled.double().mean()), "coverage": float(covered.double().mean())}


METRICS = [fid, kid, diversity, class_distance, label_accuracy]
