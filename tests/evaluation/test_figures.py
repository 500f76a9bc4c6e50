from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from utils.config.schema import SamplerSettings
from utils.evaluation.evaluation import TRAINING_IMAGES, Candidate
from utils.evaluation.figures import draw_figure, draw_trade_off, table


def row(name: str, steps: int, guidance: float, fid: float, right: float) -> tuple[Candidate, dict]:
    return Candidate(name, Path("x.pt"), "", SamplerSettings(steps=steps), guidance), {"fid": fid, "right": right}


def blue(path: Path) -> torch.Tensor:
    """Where the figure has the colour of the first curve."""
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
    ancestral = SamplerSettings(steps=8, sampler="ancestral")
    draw_trade_off(
        [(replace(each, sampling=ancestral), found) for each, found in rows[1:] + guided], "a", tmp_path / "other.png"
    )
    assert blue(tmp_path / "other.png").sum() > 500
    assert not blue(tmp_path / "one_scale.png").any() and blue(tmp_path / "two_scales.png").sum() > 500


def test_ratios_are_to_the_best_row_of_the_teacher_which_is_marked():
    rows = [(TRAINING_IMAGES, {"fid": 0.1}), row("teacher", 8, 1.0, 1.5, 0.8), row("teacher", 4, 1.0, 1.0, 0.7)]
    rows += [row("student", 2, 1.0, 0.5, 0.9), row("teacher", 8, 3.0, 4.0, 0.9), row("student", 2, 3.0, 6.0, 0.9)]
    ratios = [
        line[line.index(str(candidate)) + len(str(candidate)) :].split()[0]
        for line, (candidate, _) in zip(table(rows).splitlines()[1:], rows, strict=True)
    ]
    assert ratios == ["0.1", "1.50", "base", "0.50", "base", "1.50"]
    perfect = [(TRAINING_IMAGES, {"fid": 0.1}), row("teacher", 8, 1.0, 0.0, 0.8), row("student", 2, 1.0, 1.0, 0.9)]
    assert "base" in table(perfect)  # and there is no ratio to it


def test_a_curve_of_any_sampler_is_drawn(tmp_path):
    floor = (TRAINING_IMAGES, {"fid": 0.1, "right": None})
    sampling = SamplerSettings(steps=4).model_copy(update={"sampler": "one of a table to come"})
    rows = [floor, (Candidate("teacher", Path("x.pt"), "", sampling), {"fid": 2.0, "right": None})]
    draw_figure([floor, *rows[1:]], "a", tmp_path / "one.png")
    assert blue(tmp_path / "one.png").any()
