from collections import Counter

import torch
from conftest import image_set

from utils.data.images import ImageData, to_bytes


def numbered(count: int, seed: int = 0, random_flip: bool = False) -> ImageData:
    """Images that are all of one value, their own index, but for a brighter left column."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 2, 2)
    images[..., 0] += 100
    data = image_set(images, torch.zeros(count, dtype=torch.long), [])
    return ImageData(data, with_classes=False, seed=seed, random_flip=random_flip)


def indices(data: ImageData, step: int, batch_size: int) -> list[int]:
    x, _ = data.batch(range(step * batch_size, (step + 1) * batch_size))
    return ((x[:, 0, 0, 1] + 1) * 127.5).round().int().tolist()


def test_every_image_once_an_epoch_in_an_order_of_the_seed():
    data = numbered(10)
    drawn = [i for step in range(10) for i in indices(data, step, 4)]
    for epoch in range(4):
        assert sorted(drawn[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert drawn[:10] != drawn[10:20]
    assert indices(data, 7, 4) == drawn[28:32]  # a step's place in the data needs no memory
    assert [i for step in range(10) for i in indices(numbered(10, seed=1), step, 4)] != drawn
    assert sorted(Counter(indices(numbered(3), 0, 8)).values()) == [2, 3, 3]  # a batch larger than the data


def test_range_is_minus_one_to_one():
    data = image_set(
        torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None], torch.zeros(2, dtype=torch.long), []
    )
    data = ImageData(data, with_classes=False, seed=0, random_flip=False)
    assert sorted(data.batch(range(2))[0].flatten().tolist()) == [-1.0, 1.0]


def test_bytes_are_those_of_a_png():
    x = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.5, 1.0, 3.0])
    assert to_bytes(x).tolist() == [0, 0, 0, 128, 191, 255, 255]
    assert torch.equal(to_bytes(torch.arange(256) / 127.5 - 1), torch.arange(256).byte())  # as the data go in


def test_black_and_white_and_nothing_else_lie_a_margin_beyond_the_range():
    images = torch.tensor([0, 1, 128, 254, 255], dtype=torch.uint8)[:, None, None, None]
    data = image_set(images, torch.zeros(5, dtype=torch.long), [])
    data = ImageData(data, with_classes=False, seed=0, random_flip=False, saturation_margin=0.25)
    expected = [-1.25, 1 / 127.5 - 1, 128 / 127.5 - 1, 254 / 127.5 - 1, 1.25]
    torch.testing.assert_close(data.batch(range(5))[0].flatten().sort().values, torch.tensor(expected))


def test_random_flip_mirrors_about_half():
    data = numbered(100, random_flip=True)
    x, _ = data.batch(range(100))
    flipped = (x[:, 0, 0, 0] < x[:, 0, 0, 1]).sum().item()
    assert 30 < flipped < 70
    assert torch.equal(x[:, :, 0], x[:, :, 1])
    assert torch.equal(data.batch(range(30, 50))[0], x[30:50])  # the same, whatever it is drawn with
