"""The losses of runs as curves, in one picture, for those who have no board.

    python -m utils.training.curves output/distilled/ddpm_32x32_v_continuous_small

draws all runs below the folder, and writes loss.png there.
"""

import re
from pathlib import Path

from matplotlib.figure import Figure

from utils import cli
from utils.errors import InputError
from utils.files import write_atomically
from utils.training.log import LOG_NAME, read_log

MOST_IN_LEGEND = 16


def parse_arguments() -> tuple[Path, Path]:
    """The folder, and the path of the picture."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the runs are, such as output")
    parser.add_argument("--output", type=Path, metavar="PNG", help="where the picture goes (default: FOLDER/loss.png)")
    arguments = parser.parse_args()
    return arguments.folder, arguments.output or arguments.folder / "loss.png"


def curves_below(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """The steps and losses of each run below a folder, by its path from there.

    Raises:
        InputError: there is none.
    """
    curves = {}
    for path in sorted(folder.rglob(LOG_NAME), key=_as_numbered):
        points = [(line["step"], line["loss"]) for line in read_log(path.parent) if line.get("loss") is not None]
        if points:
            name = str(path.parent.relative_to(folder))
            curves[folder.name if name == "." else name] = tuple(zip(*points, strict=True))
    if not curves:
        raise InputError(f"{folder}: no runs there: no {LOG_NAME} with a loss")
    return curves


def _as_numbered(path: Path) -> list[tuple[int, str]]:
    """The key by which 9_2 comes before 10_1."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", str(path))]


def draw(curves: dict[str, tuple[list[int], list[float]]], path: Path) -> None:
    """Writes the picture."""
    figure = Figure(figsize=(8, 5), layout="constrained", dpi=130)
    axes = figure.subplots()
    for name, (steps, losses) in curves.items():
        axes.plot(steps, losses, label=name, linewidth=1, marker=".", markersize=4)
    axes.set_yscale("log")
    axes.set_xlabel("training steps")
    axes.set_ylabel("loss, mean since the point before")
    axes.grid(which="both", color="0.9", linewidth=0.6)
    if len(curves) <= MOST_IN_LEGEND:
        axes.legend(frameon=False, fontsize=8)
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def main() -> None:
    """Draws all runs below a folder."""
    folder, path = parse_arguments()
    draw(curves_below(folder), path)
    print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main)
