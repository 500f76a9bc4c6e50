import torch

from utils.system.grids import comparison, grid


def test_a_grid_holds_the_images_in_order():
    images = torch.linspace(-1, 1, 6)[:, None, None, None].expand(-1, 1, 4, 4)
    picture = grid(images)  # enlarged twice
    assert picture.shape == (3, 2 * (2 * 6 + 2), 2 * (3 * 6 + 2))
    torch.testing.assert_close(picture[0, [6, 18]][:, [6, 18, 30]], torch.linspace(0, 1, 6).reshape(2, 3))


def test_a_grid_has_a_column_for_each_class_where_they_fit():
    images = torch.zeros(12, 1, 32, 32)
    assert grid(images, list("abcdef")).shape[2] == 6 * 34 + 2
    assert grid(images, 17 * ["a"]).shape == grid(images).shape == (3, 3 * 34 + 2, 4 * 34 + 2)
    assert grid(images.repeat(6, 1, 1, 1), ["a", "b"]).shape[2] == 8 * 34 + 2  # four columns of each, near to a square


def test_columns_stand_under_the_names_of_their_classes():
    images = torch.full((6, 1, 32, 32), -1.0)
    for names, height in ((["0", "1", "2"], 18), (["0", "a name longer than its column", "2"], 112)):
        picture = grid(images, names)
        assert picture.shape == (3, height + 2 * 34 + 2, 3 * 34 + 2)
        strip = picture[0, :height]
        assert [(strip[:, 34 * i : 34 * i + 34] < 0.5).any().item() for i in range(3)] == [True, True, True]


def test_panels_stand_side_by_side_under_their_labels():
    images = torch.zeros(16, 3, 16, 16)
    picture = comparison([("one", images), ("two", images)])
    width = 4 * (4 * 18 + 2)  # pixels of small images are 4 x 4
    assert picture.shape == (3, 26 + width, 2 * width)
    labels = picture[:, :26]
    assert (labels[:, :, :width] < 0.5).any() and (labels[:, :, width:] < 0.5).any()
    assert (picture[:, -width // 2, width // 4] == 0.5).all()


def test_all_panels_are_as_wide_as_the_longest_label():
    images = torch.full((4, 3, 16, 16), -1.0)
    picture = comparison([("one", images), ("a label far too long for so narrow a panel", images)])
    width = picture.shape[2] // 2
    assert picture.shape == (3, 26 + 152, 2 * width) and width > 300
    for panel in picture.split(width, dim=2):
        margin = (width - 152) // 2
        assert (panel[:, 26:, :margin] == 1).all() and (panel[:, 26:, margin + 16 : margin + 64] == 0).any()


def test_panels_with_a_column_for_each_class_stand_below_each_other_under_one_heading():
    images = torch.full((6, 1, 64, 64), -1.0)
    names = ["0", "1", "2"]
    one, two, tower = (comparison(n * [("model", images)], names) for n in (1, 2, 3))
    heading, panel, width = 18, 26 + 2 * 66 + 2, 3 * 66 + 2
    assert one.shape == (3, heading + panel, width)
    assert two.shape == (3, heading + 2 * panel, width)
    assert torch.equal(two, torch.cat([one, one[:, heading:]], dim=1))
    assert tower.shape == (3, heading + panel, 3 * width)  # each under its own heading


def test_a_name_that_cannot_be_drawn_becomes_the_number_of_its_class():
    images = torch.zeros(4, 1, 64, 64)
    assert torch.equal(grid(images, ["猫", "a"]), grid(images, ["0", "a"]))
    assert not torch.equal(grid(images, ["Äpfel", "a"]), grid(images, ["Apfel", "a"]))


def test_large_images_are_not_enlarged():
    assert comparison([("model", torch.zeros(4, 3, 64, 64))]).shape[2] == 2 * 66 + 2
    assert grid(torch.zeros(4, 3, 32, 32)).shape[2] == 2 * 34 + 2
