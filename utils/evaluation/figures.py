"""The table of an evaluation, and its figures: FID against the number of steps (paper, figure 4), and guidance."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from utils.evaluation.evaluation import Candidate
from utils.system.errors import counted
from utils.system.files import write_atomically

Row = tuple[Candidate, dict[str, Any]]
NOT_IN_TABLE = {"guidance", "variance"}  # floats of the key


def table(rows: list[Row]) -> str:
    """The table: a column for each number of the results, and the ratio of FID to the teacher's best row, the base."""
    bases: dict[float, float] = {}
    for candidate, found in rows:
        if candidate.name == "teacher":
            bases[candidate.guidance] = min(found["fid"], bases.get(candidate.guidance, found["fid"]))
    columns = dict.fromkeys(
        name for _, found in rows for name, value in found.items() if type(value) is float and name not in NOT_IN_TABLE
    )
    width = max(len(str(candidate)) for candidate, _ in rows)
    lines = [" " * width + "   ratio" + "".join(f"  {name:>10}" for name in columns)]
    for candidate, found in rows:
        base = bases.get(candidate.guidance) if candidate.path else None
        ratio = "base" if found["fid"] == base else f"{found['fid'] / base:.2f}" if base else ""
        cells = ("" if found.get(name) is None else f"{found[name]:.4g}" for name in columns)
        widths = (max(10, len(name)) for name in columns)
        cells = "".join(f"  {cell:>{each}}" for cell, each in zip(cells, widths, strict=True))
        lines.append(f"{candidate!s:<{width}}{ratio:>8}{cells}")
    return "\n".join(lines)


def draw_figure(rows: list[Row], title: str, path: Path) -> None:
    """Writes FID against the number of sampling steps, at the first guidance scale; the first row is the floor."""
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
        if candidate.path and found["right"] is not None:
            curve = f"{candidate.name}, {candidate.sampling.sampler}, {counted(candidate.sampling.steps, 'step')}"
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
