"""The report of an evaluation: a table, and the figure of the paper (its figure 4)."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from utils.evaluation.candidate import Candidate
from utils.files import write_atomically

Row = tuple[Candidate, dict[str, Any]]

# heading -> width of the column; a negative width aligns it to the left
COLUMNS = {
    "": -38,
    "FID": 8,
    "ratio": 6,
    "of trace": 9,
    "KID x 1000": 16,
    "distance": 9,
    "classes": 8,
    "right": 7,
    "ms/picture": 11,
}

# name of a curve -> (colour, marker, line): told apart also without colours
STYLES = {
    "distilled": ("#c1272d", "o", "-"),
    "teacher, ddim": ("#0000a7", "s", "--"),
    "teacher, ancestral": ("#008176", "^", ":"),
}


def line_of(cells: Iterable[str]) -> str:
    """Formats a line of the table; `line_of(COLUMNS)` is the header."""
    widths = zip(cells, COLUMNS.values(), strict=True)
    return " ".join(f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}" for cell, width in widths)


def cells_of(candidate: Candidate, found: dict[str, Any], baseline: float | None) -> Iterator[str]:
    """The cells of a candidate; `baseline` is the FID that ratios refer to."""
    yield str(candidate)
    yield f"{found['fid']:.3f}"
    yield f"{found['fid'] / baseline:.2f}" if baseline and candidate.path else ""
    yield f"{found['fid_share']:.2%}"
    yield f"{1000 * found['kid']:.2f} ± {1000 * found['kid_std']:.2f}"
    yield "" if found.get("distance") is None else f"{found['distance']:.3f}"
    yield "" if found["class_distance"] is None else f"{found['class_distance']:.1%}"
    yield "" if found.get("right") is None else f"{found['right']:.1%}"
    yield f"{1000 * found['seconds_per_picture']:.2f}" if candidate.path else ""


def draw_figure(rows: list[Row], title: str, path: Path) -> None:
    """Writes FID against the number of sampling steps, at the first guidance scale, as a PNG.

    The first row is the floor, real images.
    """
    curves: dict[str, dict[int, float]] = {}
    first_scale = next((candidate.guidance for candidate, _ in rows if candidate.path), 1.0)
    for candidate, found in rows:
        if candidate.path and candidate.guidance == first_scale:
            name = candidate.name if candidate.name == "distilled" else f"teacher, {candidate.sampler}"
            curves.setdefault(name, {})[candidate.sampling_steps] = found["fid"]
    figure, axes = _plot(title, "sampling steps")
    for name, (colour, marker, line) in STYLES.items():
        if points := sorted(curves.get(name, {}).items()):
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=line, label=name)
    axes.axhline(rows[0][1]["fid"], color="0.45", linewidth=1, linestyle="-.", label="real images (the floor)")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({steps for points in curves.values() for steps in points}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _write(figure, axes, path)


def draw_trade_off(rows: list[Row], title: str, path: Path) -> None:
    """Writes FID against the share of right classes along the guidance scale, a curve for each model, as a PNG.

    The trade-off of the papers: their figures show the Inception score in place of the share.
    """
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for candidate, found in rows:
        if candidate.sampler == "ddim" and found.get("right") is not None:
            curve = f"{candidate.name}, {candidate.sampling_steps} step{'s' if candidate.sampling_steps > 1 else ''}"
            curves.setdefault(curve, []).append((candidate.guidance, 100 * found["right"], found["fid"]))
    figure, axes = _plot(f"{title}\nnumbers: the guidance scale", "pictures of the class that was asked for, %")
    for curve, points in curves.items():
        if len(points) > 1:
            _, marker, line = STYLES["distilled" if curve.startswith("distilled") else "teacher, ddim"]
            scales, right, fid = zip(*sorted(points), strict=True)
            axes.plot(right, fid, marker=marker, linestyle=line, label=curve)
            for point in zip(scales, right, fid, strict=True):
                axes.annotate(f"{point[0]:g}", point[1:], xytext=(3, 4), textcoords="offset points", fontsize=7)
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _write(figure, axes, path)


def _plot(title: str, what: str) -> tuple[Figure, Axes]:
    """An empty figure of FID, on a logarithmic scale, against something else."""
    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=130)
    axes = figure.subplots()
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(what)
    axes.set_ylabel("FID against the test images")
    axes.set_title(title, fontsize=10)
    axes.grid(which="both", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _write(figure: Figure, axes: Axes, path: Path) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
