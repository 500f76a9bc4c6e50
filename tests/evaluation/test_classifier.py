from dataclasses import replace

import pytest
import torch
from conftest import image_set

from utils.data.images import ImageSet, content_hash
from utils.evaluation import classifier
from utils.evaluation.classifier import load_classifier
from utils.system.errors import InputError

CPU = torch.device("cpu")


def shapes(count: int, seed: int) -> ImageSet:
    """Dim images with a bright bar: across in class 0, upright in class 1."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    places = torch.randint(8, (count,), generator=generator)
    for image, label, place in zip(images, labels, places, strict=True):
        image[0, place] += 150 * (1 - label).byte()
        image[0, :, place] += 150 * label.byte()
    return image_set(images, labels, ["across", "upright"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(classifier, "BATCH_SIZE", 32)
    return tmp_path / "cache"


def test_it_learns_and_is_trained_only_once(cache, capsys, monkeypatch):
    training, test = shapes(800, 0), shapes(200, 1)
    first, name = load_classifier("shapes", training, test, CPU)
    assert classifier.accuracy(first, test.images, test.labels) > 0.9
    assert classifier.accuracy(first, test.images, 1 - test.labels) < 0.7
    share = 100 * classifier.accuracy(first, test.images, test.labels)
    assert f"a classifier with an accuracy of {share:.2f}% on the test images" in capsys.readouterr().out
    monkeypatch.setattr(classifier, "train_classifier", None)
    second, same_name = load_classifier("shapes", training, test, CPU)
    assert name == same_name and len(list(cache.iterdir())) == 1
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(first.features(x), second.features(x)) and first.features(x).shape == (5, 128)


def test_other_images_or_classes_have_a_classifier_of_their_own():
    data = shapes(4, 0)
    images, labels = data.images, data.labels
    other = images.clone()
    other[3, 0, 7, 7] ^= 1
    hashes = {content_hash(images, labels), content_hash(other, labels), content_hash(images, 1 - labels)}
    hashes.add(content_hash(images.reshape(4, 1, 4, 16), labels))
    assert len(hashes) == 4


def test_the_same_whatever_was_drawn_before(cache):
    training, test = shapes(64, 0), shapes(8, 1)
    first, name = load_classifier("shapes", training, test, CPU)
    next(cache.iterdir()).unlink()
    torch.rand(100)
    second, same_name = load_classifier("shapes", training, test, CPU)
    assert name == same_name
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_damaged_cache_is_named(cache):
    training, test = shapes(64, 0), shapes(8, 1)
    load_classifier("shapes", training, test, CPU)
    (path,) = cache.iterdir()
    whole = torch.load(path)
    torch.save(whole | {"weights": {"head.bias": torch.zeros(2)}}, path)
    with pytest.raises(InputError, match=rf"{path.name}: of another architecture or damaged; delete it"):
        load_classifier("shapes", training, test, CPU)
    path.write_bytes(b"half a fi")
    with pytest.raises(InputError, match=rf"{path.name}: truncated or damaged, or not a classifier"):
        load_classifier("shapes", training, test, CPU)


def test_other_weights_have_another_name(cache):
    """As another number of threads would round them to: their features are others."""
    training, test = shapes(64, 0), shapes(8, 1)
    _, name = load_classifier("shapes", training, test, CPU)
    (path,) = cache.iterdir()
    content = torch.load(path)
    content["weights"]["head.bias"] += 1e-6
    torch.save(content, path)
    assert load_classifier("shapes", training, test, CPU)[1] != name


def test_one_class_is_none():
    data = shapes(8, 0)
    with pytest.raises(InputError, match="has no classes"):
        load_classifier("shapes", replace(data, labels=0 * data.labels, class_names=[]), data, CPU)
