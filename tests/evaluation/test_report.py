from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from utils.evaluation.candidate import TRAINING_IMAGES, Candidate
from utils.evaluation.report import draw_figure, draw_trade_off


def row(name: str, steps: int, guidance: float, fid: float, right: float) -> tuple[Candidate, dict]:
    return Candidate(name, Path("x.pt"), "ddim", steps, guidance), {"fid": fid, "right": right}


def blue(path: Path) -> torch.Tensor:
    """Where the figure has the colour of a teacher's curve, or matplotlib's first."""
    picture = pil_to_tensor(Image.open(path).convert("RGB")).int()
    return (picture[2] - picture[0]) > 80


def test_the_figures_show_the_rows_that_belong_into_them(tmp_path):
    floor = (TRAINING_IMAGES, {"fid": 0.1, "right": None})
    rows = [floor, row("teacher", 8, 1.0, 1.0, 0.8), row("teacher", 4, 1.0, 2.0, 0.7)]
    guided = [row("teacher", 8, 3.0, 3.0, 0.95)]
    draw_figure(rows, "a", tmp_path / "without.png")
    draw_figure(rows + guided, "a", tmp_path / "with.png")
    assert (tmp_path / "without.png").read_bytes() == (tmp_path / "with.png").read_bytes()  # the first scale's alone
    draw_trade_off(rows, "a", tmp_path / "one_scale.png")
    draw_trade_off(rows + guided, "a", tmp_path / "two_scales.png")
    assert not blue(tmp_path / "one_scale.png").any() and blue(tmp_path / "two_scales.png").sum() > 500
