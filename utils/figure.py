"""The paper's figure: FID against the number of sampling steps."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from utils.files import write_atomically

# name of a curve -> (colour, marker, line): told apart also without colours
STYLES = {
    "distilled": ("#c1272d", "o", "-"),
    "teacher, ddim": ("#0000a7", "s", "--"),
    "teacher, ancestral": ("#008176", "^", ":"),
}


def draw_figure(curves: dict[str, dict[int, float]], floor: float, title: str, path: Path) -> None:
    """Writes a PNG.

    Args:
        curves: for each name in `STYLES`, FID by number of sampling steps.
        floor: the FID of as many real images.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=130)
    axes = figure.subplots()
    for name, (colour, marker, line) in STYLES.items():
        if points := sorted(curves.get(name, {}).items()):
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=line, label=name)
    axes.axhline(floor, color="0.45", linewidth=1, linestyle="-.", label="real images (the floor)")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({steps for points in curves.values() for steps in points}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("sampling steps")
    axes.set_ylabel("FID against the test images")
    axes.set_title(title, fontsize=10)
    axes.grid(which="both", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
