"""Measures quality against the number of sampling steps: the figure of Salimans & Ho 2022 (their figure 4).

    python evaluate.py --config_path configs/ddpm_32x32_v_continuous_small.yaml \\
      --teacher output/ddpm_32x32_v_continuous_small/diffusion-5000.pt \\
      --students output/distilled/ddpm_32x32_v_continuous_small

Every student at its own number of steps, and the teacher at each number of steps by each sampler, are compared with
the test images: FID, KID and what else results.json says. The first row is the floor, as many real images; the ratio
is to the first model's FID, the teacher at the most steps. What is in results.json already is not computed again, so
an interrupted evaluation continues with the same command.
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils import cli
from utils.checkpoints import load_checkpoint
from utils.compute import FORWARD, Compute
from utils.config import Config, load_config
from utils.data import load_images
from utils.distributed import is_first
from utils.errors import InputError
from utils.evaluation import TRAINING_IMAGES, UNIFORM_NOISE, Candidate, Evaluation
from utils.figure import draw_figure
from utils.files import prepare_folder
from utils.metrics import EXTRACTORS
from utils.results import Results
from utils.run import latest_checkpoint, student_folders

MOST_ANCESTRAL_STEPS = 64  # by default; at more, the ancestral sampler only costs more time


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(description=__doc__)
    parser.add_config_path()
    parser.add_argument(
        "--teacher", required=True, type=Path, metavar="CHECKPOINT", help="its diffusion-<step>.pt; required"
    )
    parser.add_argument(
        "--students",
        type=Path,
        metavar="FOLDER",
        help="where distill.py wrote the students; the latest checkpoint of each is taken (default: no students)",
    )
    parser.add_argument(
        "--num_samples",
        type=cli.positive_int,
        default=5000,
        metavar="N",
        help="pictures a row; only rows with the same number can be compared (default: 5000)",
    )
    parser.add_argument(
        "--sampling_steps",
        type=cli.positive_int,
        nargs="+",
        metavar="N",
        help="numbers of steps to look at (default: powers of two, for DDIM and the students up to the fewest that "
        f"give the same pictures as 1024, for the ancestral sampler up to {MOST_ANCESTRAL_STEPS})",
    )
    parser.add_argument(
        "--samplers",
        type=lambda text: text.split(","),
        default=["ddim", "ancestral"],
        metavar="NAMES",
        help="of the teacher: ddim,ancestral or one of them (default: both); students are sampled by DDIM",
    )
    parser.add_argument(
        "--features",
        choices=list(EXTRACTORS),
        default="classifier",
        help="what pictures are compared by: a small classifier of this data set, trained at the first use, or the "
        "usual Inception, which needs torch-fidelity and a network (default: classifier)",
    )
    parser.add_argument(
        "--batch_size", type=cli.positive_int, default=250, metavar="N", help="pictures drawn at once (default: 250)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")
    parser.add_argument(
        "--output_dir",
        type=Path,
        metavar="FOLDER",
        help="where results.json and fid.png go (default: output/evaluation/<name of the config>)",
    )
    parser.add_compute_arguments()
    arguments = parser.parse_args()
    for name in arguments.samplers:
        if name not in ("ddim", "ancestral"):
            raise InputError(
                f"--samplers: should be ddim, ancestral or ddim,ancestral, not {','.join(arguments.samplers)}"
            )
    if arguments.num_samples < 2:
        raise InputError("--num_samples: should be at least 2; below some thousands, FID says little")
    return arguments


def find_students(folder: Path | None, config: Config, config_path: str) -> list[Candidate]:
    """The latest checkpoint of each student below the folder, at its own number of steps; most steps first.

    Raises:
        InputError: there is none, or one is of another model.
    """
    if folder is None:
        return []
    students = []
    for path, _, _ in student_folders(folder):
        if latest := latest_checkpoint(path):
            checkpoint = load_checkpoint(latest)
            checkpoint.require_same_model(config, config_path)
            students.append(Candidate("distilled", latest, "ddim", checkpoint.default_sampling_steps))
    if not students:
        raise InputError(f"--students {folder}: no students of distill.py there, such as 7_8/diffusion-600.pt")
    return sorted(students, key=lambda student: -student.sampling_steps)


def choose_candidates(
    arguments: argparse.Namespace, students: list[Candidate], evaluation: Evaluation
) -> list[Candidate]:
    """The rows of the table: the floor, the ceiling, the teacher, the students."""
    if arguments.sampling_steps:
        ddim_steps = ancestral_steps = sorted(set(arguments.sampling_steps), reverse=True)
    else:
        most = evaluation.fewest_steps()
        ddim_steps = [2**k for k in range(most.bit_length() - 1, -1, -1)]
        ancestral_steps = [2**k for k in range(MOST_ANCESTRAL_STEPS.bit_length() - 1, -1, -1)]
    candidates = [TRAINING_IMAGES, UNIFORM_NOISE]
    for sampler, chosen in (("ddim", ddim_steps), ("ancestral", ancestral_steps)):
        if sampler in arguments.samplers:
            candidates += [Candidate("teacher", arguments.teacher, sampler, steps) for steps in chosen]
    return candidates + [student for student in students if student.sampling_steps in ddim_steps]


COLUMNS = {
    "": -32,
    "FID": 8,
    "ratio": 6,
    "of trace": 9,
    "KID x 1000": 16,
    "distance": 9,
    "classes": 8,
    "ms/picture": 11,
}


def row_of(cells: Iterable[str]) -> str:
    """Cells as a line of the table; a negative width holds its cell to the left."""
    widths = zip(cells, COLUMNS.values(), strict=True)
    return " ".join(f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}" for cell, width in widths)


def cells_of(candidate: Candidate, found: dict[str, Any], baseline: float | None) -> Iterator[str]:
    """What the table says of a candidate; `baseline` is the FID that the others' are shown as multiples of."""
    yield str(candidate)
    yield f"{found['fid']:.3f}"
    yield f"{found['fid'] / baseline:.2f}" if baseline and candidate.path else ""
    yield f"{found['fid_share']:.2%}"
    yield f"{1000 * found['kid']:.2f} ± {1000 * found['kid_std']:.2f}"
    yield "" if found.get("distance") is None else f"{found['distance']:.3f}"
    yield "" if found["class_distance"] is None else f"{found['class_distance']:.1%}"
    yield f"{1000 * found['seconds_per_picture']:.2f}" if candidate.path else ""


def curves_of(rows: list[tuple[Candidate, dict[str, Any]]]) -> dict[str, dict[int, float]]:
    """FID by number of steps, for each curve of the figure."""
    curves: dict[str, dict[int, float]] = {}
    for candidate, found in rows:
        if candidate.path:
            name = candidate.name if candidate.name == "distilled" else f"teacher, {candidate.sampler}"
            curves.setdefault(name, {})[candidate.sampling_steps] = found["fid"]
    return curves


def main() -> None:
    """Everything is checked first; then one row after the other."""
    arguments = parse_arguments()
    config = load_config(arguments.config_path, cli.overrides(arguments))
    device = cli.choose_device(arguments.device)
    teacher = load_checkpoint(arguments.teacher)
    teacher.require_same_model(config, arguments.config_path)
    students = find_students(arguments.students, config, arguments.config_path)
    name = Path(arguments.config_path).stem
    folder = arguments.output_dir or Path("output", "evaluation", name)
    results = Results(folder / "results.json")
    training, test = load_images(config.data), load_images(config.data, test=True)
    if arguments.num_samples > len(training[0]):
        raise InputError(
            f"--num_samples {arguments.num_samples}: there are only {len(training[0])} training images, and the floor "
            "takes as many"
        )
    prepare_folder(folder)
    extractor = EXTRACTORS[arguments.features](config.data.name, training, test, device)
    steps = sum(arguments.sampling_steps or [1024])  # about what the teacher is sampled with, in all rows together
    passes = FORWARD * arguments.num_samples * steps * len(arguments.samplers)
    compute = Compute.choose(config, device, passes=passes, training=False)
    print(f"evaluating on {compute}: {arguments.num_samples} pictures a row, by {extractor.name}, writing to {folder}")

    with tqdm(unit="evaluation", smoothing=0.05, leave=False, disable=not is_first()) as bar:
        evaluation = Evaluation(
            config=config,
            teacher=teacher,
            training_images=training[0],
            test_images=test[0],
            extractor=extractor,
            results=results,
            num_samples=arguments.num_samples,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            compute=compute,
            bar=bar,
        )
        candidates = choose_candidates(arguments, students, evaluation)
        bar.reset(total=evaluation.num_network_evaluations(candidates))
        tqdm.write(row_of(COLUMNS))
        rows, baseline = [], None
        for candidate in candidates:
            found = evaluation.judge(candidate)
            if baseline is None and candidate.name == "teacher" and candidate.sampler == "ddim":
                baseline = found["fid"]  # the teacher at the most steps comes first
            rows.append((candidate, found))
            tqdm.write(row_of(cells_of(candidate, found, baseline)))

    figure = folder / "fid.png"
    title = f"{name}, {arguments.num_samples} pictures, features: {arguments.features}"
    draw_figure(curves_of(rows), rows[0][1]["fid"], title, figure)
    print(f"wrote {results.path} and {figure}")


if __name__ == "__main__":
    cli.run(main)
