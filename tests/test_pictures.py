import torch

from utils.pictures import grid, side_by_side


def test_a_grid_holds_the_images_in_order():
    images = torch.linspace(-1, 1, 6)[:, None, None, None].expand(-1, 1, 4, 4)
    picture = grid(images)
    assert picture.shape == (3, 2 * 6 + 2, 3 * 6 + 2)
    torch.testing.assert_close(picture[0, [3, 9]][:, [3, 9, 15]], torch.linspace(0, 1, 6).reshape(2, 3))


def test_a_grid_has_a_column_for_each_class_where_they_fit():
    images = torch.zeros(12, 1, 4, 4)
    assert grid(images, num_classes=6).shape == (3, 2 * 6 + 2, 6 * 6 + 2)
    assert grid(images, num_classes=100).shape == grid(images).shape == (3, 3 * 6 + 2, 4 * 6 + 2)
    assert side_by_side([("a", images), ("b", images)], num_classes=6).shape[2] == 2 * 2 * (6 * 6 + 2)
    assert side_by_side(4 * [("a", images)], num_classes=6).shape[2] == 4 * 2 * (4 * 6 + 2)


def test_panels_stand_side_by_side_under_their_labels():
    images = torch.zeros(4, 3, 16, 16)
    picture = side_by_side([("one", images), ("a label far too long for so narrow a panel", images)])
    width = 2 * (2 * 18 + 2)
    assert picture.shape[0] == 3 and picture.shape[2] == 2 * width
    labels = picture[:, : picture.shape[1] - width]
    assert (labels[:, :, :width] < 0.5).any() and (labels[:, :, width:] < 0.5).any()
    assert (picture[:, -width // 2, width // 4] == 0.5).all()
