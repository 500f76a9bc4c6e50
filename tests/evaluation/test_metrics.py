"""The metrics against computations of their own, and against what every metric must say of real and of no images."""

from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torchvision.datasets import MNIST

from utils.data.images import fit, to_unit_range
from utils.evaluation import classifier, metrics
from utils.evaluation.classifier import Classifier, train_classifier
from utils.evaluation.metrics import METRICS, Extractor, Features
from utils.system.errors import InputError

CPU = torch.device("cpu")
AS_THEY_ARE = Extractor("as they are", 0, lambda features: (features, None))  # the images are the features


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """FID by its definition, with the symmetric square roots of eigenvalue decompositions (Heusel et al. 2017)."""

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T

    a, b = a.double(), b.double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    both = root(root(cov_a) @ cov_b @ root(cov_a))
    return float((a.mean(0) - b.mean(0)).square().sum() + (cov_a + cov_b - 2 * both).trace())


def correlated(count: int, seed: int, mean: float = 0.0) -> torch.Tensor:
    torch.manual_seed(seed)
    mixing = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed + 100))
    return torch.randn(count, 8) @ mixing + mean


def score(real, pictures, extractor=AS_THEY_ARE) -> SimpleNamespace:
    """All metrics of two sets of images."""
    sets = [Features(*extractor.extract(images)) for images in (real, pictures)]
    found = {}
    for metric in METRICS:
        found |= metric(*sets)
    return SimpleNamespace(**found)


def test_fid_is_an_independent_computation_of_it():
    real, pictures = correlated(3000, 0), correlated(2000, 1, mean=0.5)
    scores = score(real, pictures)
    assert scores.fid == pytest.approx(frechet(real, pictures), rel=1e-5)
    assert scores.fid_share == pytest.approx(scores.fid / float(real.double().T.cov().trace()), rel=1e-5)


def test_fid_of_shifted_features_is_the_square_of_the_shift():
    real = correlated(1000, 0)
    assert score(real, real + 3.0).fid == pytest.approx(8 * 9, rel=1e-4)
    assert score(real, real.flip(0)).fid == pytest.approx(0, abs=1e-3)


def test_kid_is_an_independent_computation_of_it():
    """Unbiased, so the mean over subsets is near that over all pairs; subsets of half of the images differ."""
    real, pictures = correlated(400, 0), correlated(400, 1, mean=0.5)

    def kernel(a, b):
        return (a.double() @ b.double().T / 8 + 1) ** 3

    def within(a):
        return (kernel(a, a).sum() - kernel(a, a).trace()) / (len(a) * (len(a) - 1))

    expected = within(real) + within(pictures) - 2 * kernel(real, pictures).mean()
    scores = score(real, pictures)
    assert scores.kid == pytest.approx(float(expected), rel=0.05)
    assert 0.02 < scores.kid_std / scores.kid < 0.3


def test_equal_sets_have_distance_0_and_images_that_are_all_alike_no_share():
    real, constant = correlated(200, 0), torch.ones(200, 8)
    assert 0 <= score(real, real).fid < 1e-3
    scores = score(constant, real)
    assert scores.fid > 0 and scores.fid_share is None


def test_recall_and_coverage_miss_what_is_never_drawn_and_what_is_too_much_alike():
    """The definitions, image by image (Kynkaanniemi et al. 2019, equation 1; Naeem et al. 2020, equation 4)."""
    torch.manual_seed(0)
    here, there = torch.randn(2, 300, 2)
    real = torch.cat([here, there + 100])
    found = score(real, torch.randn(300, 2))  # one of two clusters, and half as many: all of it would be the first half
    assert found.recall == pytest.approx(0.5, abs=0.05) and found.coverage == pytest.approx(0.5, abs=0.05)
    alike = score(real, real)
    assert alike.coverage == 1 and alike.recall == 1
    drawn = 0.1 * torch.randn(600, 2)
    found = score(real, drawn)
    radii = torch.stack([(sample - drawn).norm(dim=1).sort().values[5] for sample in drawn])
    recalled = covered = 0
    for image in real:
        distances = (image - drawn).norm(dim=1)
        recalled += bool((distances < radii).any())
        covered += bool(distances.min() < (image - real).norm(dim=1).sort().values[5])
    assert (found.recall, found.coverage) == (recalled / 600, covered / 600) and max(found.recall, found.coverage) < 0.1


def test_it_is_the_same_every_time_and_leaves_the_random_numbers_alone():
    real, near, far = correlated(3000, 0), correlated(1500, 1), correlated(1500, 2, mean=2.0)
    first, state = score(real, near), torch.get_rng_state()
    other = score(real, far)
    assert torch.equal(torch.get_rng_state(), state)
    assert other.fid > first.fid and other.kid > first.kid
    assert score(real, near) == first


def test_the_spread_over_classes():
    extractor = Extractor("sign", 2, lambda features: (features, (features[:, 0] > 0).long()))
    real, pictures = torch.randn(100, 8), torch.randn(50, 8)
    real[:, 0], pictures[:, 0] = 1.0, 1.0
    real[:50, 0], pictures[:10, 0] = -1.0, -1.0
    scores = score(real, pictures, extractor)
    assert scores.classes == pytest.approx([0.2, 0.8]) and scores.class_distance == pytest.approx(0.3)


@pytest.fixture
def mnist():
    """Real images, and the features of a classifier that has seen a tenth of them."""
    training, test = (MNIST(ROOT / "data", train=train, download=True) for train in (True, False))
    images, test_images = (fit(digits.data[:11_000, None], 16, 1) for digits in (training, test))
    torch.manual_seed(0)
    network = Classifier(1, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "FEWEST_STEPS", 100)
        train_classifier(network, images[:6000], training.targets[:6000])
    assert classifier.accuracy(network, test_images, test.targets) > 0.95

    def extract(images):
        features = network.features(to_unit_range(images))
        return features, network.head(features).argmax(dim=1)

    return images[6000:], test_images[:5000], Extractor("mnist", 10, extract)


def test_real_images_and_noise(mnist):
    """The floor lies near 0, noise lies farther than the features are spread, damage lies between; by FID and KID."""
    training, test, extractor = mnist
    noise = torch.randint(256, (5000, 1, 16, 16), dtype=torch.uint8)
    with torch.inference_mode():
        itself, floor, blurred, noise = (
            score(test, images, extractor) for images in (test, training, training // 2, noise)
        )
    assert abs(itself.fid_share) < 1e-3 and itself.class_distance == 0
    assert 1e-3 < floor.fid_share < 0.02 and floor.class_distance < 0.03
    assert floor.fid < blurred.fid < noise.fid and floor.kid < blurred.kid < noise.kid
    assert noise.fid_share > 1 and noise.class_distance > 0.5
    assert sum(noise.classes) == pytest.approx(1)
    with torch.inference_mode():
        features = [extractor.extract(images)[0] for images in (test, training // 2)]
    assert blurred.fid == pytest.approx(frechet(*features), rel=1e-3)


def test_inception_that_cannot_be_had_is_one_clear_line(monkeypatch):
    def missing(**_):
        raise ModuleNotFoundError("torch-fidelity")

    def unreachable(**_):
        raise OSError("no route to host")

    nothing = (torch.empty(0), torch.empty(0))
    for failure, message in (
        (missing, "pip install torch-fidelity"),
        (unreachable, "no route to host"),
    ):
        monkeypatch.setattr(metrics, "FrechetInceptionDistance", failure)
        with pytest.raises(InputError, match=rf"--features inception: .*{message}"):
            metrics.inception_features("MNIST", nothing, nothing, CPU)
