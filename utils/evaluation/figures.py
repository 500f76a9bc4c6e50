"""The table of an evaluation, and its figures: FID against the number of steps (paper, figure 4), and guidance."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from utils.evaluation.evaluation import Candidate
from utils.evaluation.metrics import METRICS
from utils.system.files import write_atomically

Row = tuple[Candidate, dict[str, Any]]
Column = tuple[str, int, Callable[[Candidate, dict[str, Any], float | None], str]]  # heading, width, cell

FIRST_WIDTH = 38
COLUMNS: list[Column] = [
    (heading, metric.width, lambda _, found, __, cell=metric.cell: cell(found)) for heading, metric in METRICS.items()
]
COLUMNS += [
    ("distance", 9, lambda _, found, __: "" if found["distance"] is None else f"{found['distance']:.3f}"),
    ("ms/sample", 10, lambda row, found, _: f"{1000 * found['seconds_per_sample']:.2f}" if row.path else ""),
    ("of trace", 9, lambda _, found, __: f"{found['fid_share']:.2%}"),
    ("ratio", 7, lambda row, found, base: _ratio(found["fid"], base) if row.path else ""),
]


def _ratio(fid: float, base: float | None) -> str:
    return "" if base is None else "base" if fid == base else f"{fid / base:.2f}"


def bases_of(rows: Iterable[Row]) -> dict[float, float]:
    """The FID of the teacher's best row at each guidance scale, the base of the ratios."""
    bases: dict[float, float] = {}
    for candidate, found in rows:
        if candidate.name == "teacher":
            bases[candidate.guidance] = min(found["fid"], bases.get(candidate.guidance, found["fid"]))
    return bases


def table(rows: list[Row]) -> str:
    """The table, with a column for each metric, and the ratio of FID to the teacher's best row, which it marks."""
    bases = bases_of(rows)
    lines = [" " * FIRST_WIDTH + "".join(f" {heading:>{width}}" for heading, width, _ in COLUMNS)]
    for candidate, found in rows:
        base = bases.get(candidate.guidance)
        cells = (f" {cell(candidate, found, base):>{width}}" for _, width, cell in COLUMNS)
        lines.append(f"{candidate!s:<{FIRST_WIDTH}}" + "".join(cells))
    return "\n".join(lines)


def draw_figure(rows: list[Row], title: str, path: Path) -> None:
    """Writes FID against the number of sampling steps, at the first guidance scale, as a PNG.

    The first row is the floor: real images.
    """
    curves: dict[str, dict[int, float]] = {}
    first_scale = next((candidate.guidance for candidate, _ in rows if candidate.path), 1.0)
    for candidate, found in rows:
        if candidate.path and candidate.guidance == first_scale:
            name = f"{candidate.name}, {candidate.sampling.sampler}"
            curves.setdefault(name, {})[candidate.sampling.steps] = found["fid"]
    figure, axes = _plot(title, "sampling steps")
    for number, name in enumerate(sorted(curves)):
        _curve(axes, sorted(curves[name].items()), name, number)
    axes.axhline(rows[0][1]["fid"], color="0.45", linewidth=1, linestyle="-.", label="real images (the floor)")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({steps for points in curves.values() for steps in points}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _write(figure, axes, path)


def draw_trade_off(rows: list[Row], title: str, path: Path) -> None:
    """Writes FID against the accuracy of the labels along the guidance scale, a curve for each model, as a PNG.

    The papers' trade-off; their figures have the Inception score in place of the accuracy.
    """
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for candidate, found in rows:
        if candidate.path and candidate.sampling.sampler == "ddim" and found["right"] is not None:
            steps = candidate.sampling.steps
            curve = f"{candidate.name}, {steps} step{'s' if steps > 1 else ''}"
            curves.setdefault(curve, []).append((candidate.guidance, 100 * found["right"], found["fid"]))
    figure, axes = _plot(f"{title}\nnumbers: the guidance scale", "samples of the requested class, %")
    several = {name: sorted(points) for name, points in curves.items() if len(points) > 1}
    for number, (name, points) in enumerate(several.items()):
        _curve(axes, [point[1:] for point in points], name, number)
        for scale, *point in points:
            axes.annotate(f"{scale:g}", point, xytext=(3, 4), textcoords="offset points", fontsize=7)
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _write(figure, axes, path)


def _curve(axes: Axes, points: Iterable[tuple[float, float]], name: str, number: int) -> None:
    """A curve with its own colour, marker and line, so that it is recognizable without colours."""
    marker, line = "osD^vP*X"[number % 8], ("-", "--", ":", "-.")[number % 4]
    axes.plot(*zip(*points, strict=True), color=f"C{number}", marker=marker, linestyle=line, label=name)


def _plot(title: str, x_label: str) -> tuple[Figure, Axes]:
    """An empty figure of FID, on a logarithmic scale, against something else."""
    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=130)
    axes = figure.subplots()
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(x_label)
    axes.set_ylabel("FID against the test images")
    axes.set_title(title, fontsize=10)
    axes.grid(which="both", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _write(figure: Figure, axes: Axes, path: Path) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
