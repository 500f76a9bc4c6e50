"""Measures quality against the number of sampling steps: the figure of Salimans & Ho 2022 (their figure 4).

    python evaluate.py --config_path configs/ddpm_32x32_v_continuous_small.yaml \\
      --teacher output/ddpm_32x32_v_continuous_small/diffusion-3000.pt \\
      --students output/distilled/ddpm_32x32_v_continuous_small

Every student at its own number of steps, and the teacher at several numbers of steps by each sampler, are compared with
the test images: FID, KID and the other metrics in results.json. The first row is the floor, as many real images; the
ratio is to the first model's FID, the teacher at the most steps. What is in results.json already is not computed again,
so an interrupted evaluation continues with the same command.
"""

import utils  # noqa: F401 (first: from here on Ctrl-C ends quietly)

# isort: split
import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from utils import cli
from utils.checkpoint_files import load_checkpoint
from utils.checkpoints import Checkpoint
from utils.compute import FORWARD_PASSES, Compute
from utils.config import load_config
from utils.data.load import load_images, require_num_classes, require_same_classes, require_test_root
from utils.errors import InputError
from utils.evaluation.candidate import (
    BASE_STEPS,
    TRAINING_IMAGES,
    UNIFORM_NOISE,
    Candidate,
    NumPictures,
)
from utils.evaluation.evaluation import Evaluation
from utils.evaluation.metrics import EXTRACTORS
from utils.evaluation.report import COLUMNS, cells_of, draw_figure, draw_trade_off, line_of
from utils.evaluation.results import Results
from utils.files import locked
from utils.schema import Config
from utils.training.students import latest_checkpoint, student_folders

SAMPLERS = ["ddim", "ancestral"]
FEW_PICTURES = 1000
MOST_ANCESTRAL_STEPS = 64  # by default: a row of so many steps costs as much as all before it
USUAL_FEWEST_STEPS = 256  # that draw the pictures of 1024, to estimate the work before they are known


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
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
    parser.add_count(
        "--student_steps", "only the students of these numbers of steps (default: every student)", nargs="+"
    )
    parser.add_count(
        "--num_samples",
        "pictures a row, at most as many as there are to train on; only rows with the same number can be compared",
        5000,
    )
    parser.add_count(
        "--num_few",
        f"pictures of the teacher's row of {2 * BASE_STEPS} DDIM steps, which is scored by how they differ from as "
        "many with half the steps; half as many at each doubling, but at least 4 for each feature; with --num_samples, "
        "all rows are scored alone",
        1000,
    )
    parser.add_count(
        "--sampling_steps",
        "numbers of steps to sample the teacher with (default: powers of two and those of the students, for DDIM up to "
        f"the fewest that give the same pictures as 1024, for the ancestral sampler up to {MOST_ANCESTRAL_STEPS}); "
        "64 pictures are drawn with 1024 in any case, for the distance",
        nargs="+",
    )
    parser.add_argument(
        "--samplers",
        type=samplers,
        default=SAMPLERS,
        metavar="NAMES",
        help="of the teacher: ddim,ancestral or one of them (default: both); students are sampled by DDIM",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="SCALE",
        help="guidance scales, for models that can be guided; with several, the table is whole for the first, the "
        "others are of the teacher (at its most steps, or at --sampling_steps) and of the students, without the "
        "distance, and a second figure shows FID against the share of right classes (default: 1)",
    )
    parser.add_argument(
        "--features",
        choices=list(EXTRACTORS),
        default="classifier",
        help="what pictures are compared by: a small classifier of this data set, trained at the first use, or the "
        "usual Inception, which needs torch-fidelity and a network (default: classifier)",
    )
    parser.add_count("--batch_size", "pictures drawn at once", 250)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")
    parser.add_argument(
        "--output_dir",
        type=Path,
        metavar="FOLDER",
        help="where results.json goes, and fid.png of these rows (default: output/evaluation/<name of the config>)",
    )
    parser.add_compute_arguments()
    arguments = parser.parse_args()
    if arguments.num_samples < 2:
        raise InputError("--num_samples: should be at least 2; below some thousands, FID says little")
    return arguments


def samplers(text: str) -> list[str]:
    """argparse type: names of samplers, separated by commas."""
    if not set(text.split(",")) <= set(SAMPLERS):
        raise argparse.ArgumentTypeError(f"should be ddim, ancestral or ddim,ancestral, not {text}")
    return text.split(",")


def find_students(arguments: argparse.Namespace, config: Config) -> list[Checkpoint]:
    """The latest checkpoint of each student that is asked for; most steps first.

    Raises:
        InputError: there is none, or one is of another model.
    """
    folder, wanted = arguments.students, arguments.student_steps
    latest = [latest_checkpoint(path) for path, _, _ in (student_folders(folder) if folder else ())]
    students = [load_checkpoint(path) for path in latest if path]
    for student in students:
        student.require_same_model(config, arguments.config_path)
    if folder and not students:
        raise InputError(f"--students {folder}: no students of distill.py there, such as 7_8/diffusion-360.pt")
    known = {student.default_sampling_steps for student in students}
    if missing := sorted(set(wanted or ()) - known):
        raise InputError(f"--student_steps {missing[0]}: no such student; there are {sorted(known)}")
    chosen = [student for student in students if not wanted or student.default_sampling_steps in wanted]
    return sorted(chosen, key=lambda student: -student.default_sampling_steps)


def powers_of_two(most: int) -> list[int]:
    """Those up to `most`, which comes first."""
    return [2**k for k in reversed(range(most.bit_length()))]


def choose_candidates(
    arguments: argparse.Namespace, students: list[Checkpoint], evaluation: Evaluation
) -> list[Candidate]:
    """The rows of the table: the floor, the ceiling, the teacher, the students."""
    if arguments.sampling_steps:
        ddim_steps = ancestral_steps = sorted(set(arguments.sampling_steps), reverse=True)
    else:
        most = evaluation.fewest_steps()
        ddim_steps, ancestral_steps = powers_of_two(most), powers_of_two(MOST_ANCESTRAL_STEPS)
        between = {student.default_sampling_steps for student in students if student.default_sampling_steps < most}
        ddim_steps = sorted({*ddim_steps, *between}, reverse=True)
    candidates, teacher = [TRAINING_IMAGES, UNIFORM_NOISE], evaluation.teacher
    for guidance in dict.fromkeys(arguments.guidance):
        is_first = guidance == arguments.guidance[0]
        for sampler, chosen in (("ddim", ddim_steps), ("ancestral", ancestral_steps)):
            if sampler in arguments.samplers and (is_first or sampler == "ddim"):
                few = chosen if is_first or arguments.sampling_steps else chosen[:1]
                candidates += [candidate_of("teacher", teacher, sampler, steps, guidance) for steps in few]
        for student in students:
            candidates.append(candidate_of("distilled", student, "ddim", student.default_sampling_steps, guidance))
    return candidates


def passes_of(arguments: argparse.Namespace, pictures: NumPictures) -> int:
    """About how often a picture of the teacher goes through the network, in all rows together."""
    steps = {"ddim": powers_of_two(USUAL_FEWEST_STEPS), "ancestral": powers_of_two(MOST_ANCESTRAL_STEPS)}
    rows = [
        Candidate("teacher", sampler=sampler, sampling_steps=n)
        for sampler in arguments.samplers
        for n in arguments.sampling_steps or steps[sampler]
    ]
    return FORWARD_PASSES * sum(row.sampling_steps * pictures.of(row) for row in rows)


def candidate_of(name: str, checkpoint: Checkpoint, sampler: str, steps: int, guidance: float) -> Candidate:
    """A row of the table."""
    return Candidate(name, checkpoint.path, sampler, steps, guidance, checkpoint.evaluations_per_step(guidance))


def main() -> None:
    """Checks everything before anything is drawn; then evaluates one row after the other."""
    arguments = parse_arguments()
    config = load_config(arguments.config_path, cli.overrides(arguments))
    device = cli.choose_device(arguments.device)
    teacher = load_checkpoint(arguments.teacher)
    teacher.require_same_model(config, arguments.config_path)
    students = find_students(arguments, config)
    for checkpoint in [teacher, *students]:
        for scale in arguments.guidance:
            checkpoint.require_guidance(scale)
    name = Path(arguments.config_path).stem
    folder = arguments.output_dir or Path("output", "evaluation", name)
    Results(folder / "results.json")  # is refused before anything is written
    require_test_root(config.data)
    training = load_images(config.data, accept=partial(require_num_classes, config=config))
    test = load_images(config.data, test=True, accept=partial(require_same_classes, training=training.class_names))
    for checkpoint in [teacher, *students]:
        checkpoint.require_same_classes(training.class_names)
        if checkpoint.has_seen_other_images(training.hash):
            print(f"note: the training images are others than those that {checkpoint.path} was trained on")
    if arguments.num_samples > len(training.images):
        raise InputError(
            f"--num_samples {arguments.num_samples}: there are only {len(training.images)} training images, and the "
            "floor takes as many"
        )
    if len(test.images) < 2:
        raise InputError("data.test_root: one picture is no set to compare with; there should be at least two")
    if (fewest := min(arguments.num_samples, len(test.images))) < FEW_PICTURES:
        print(f"note: {fewest} pictures or test images are few; below some thousands, the numbers say little")

    title = f"{name}, {arguments.num_samples} pictures, features: {arguments.features}"
    with locked(folder), tqdm(unit="evaluation", smoothing=0.05, leave=False) as bar:
        extractor = EXTRACTORS[arguments.features](config.data.name, training, test, device)
        pictures = NumPictures(arguments.num_samples, arguments.num_few, extractor.num_features)
        if arguments.num_few < (least := min(arguments.num_samples, pictures.least_few)):
            tqdm.write(f"note: --num_few {arguments.num_few}: few for {extractor.num_features} features, so {least}")
        passes = passes_of(arguments, pictures)
        compute = Compute.choose(config, device, passes=passes, training=False)
        tqdm.write(
            f"evaluating on {compute}: {arguments.num_samples} pictures a row, by {arguments.features}, to {folder}"
        )
        evaluation = Evaluation(
            config=config,
            teacher=teacher,
            training_images=training.images,
            test_images=test.images,
            extractor=extractor,
            results=Results(folder / "results.json"),
            num_samples=arguments.num_samples,
            num_few=arguments.num_few,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            compute=compute,
            bar=bar,
            compared_guidance=arguments.guidance[0],
        )
        candidates = choose_candidates(arguments, students, evaluation)
        bar.reset(total=evaluation.num_network_evaluations(candidates))
        tqdm.write(line_of(COLUMNS))
        rows, baselines = [], {}
        for candidate in candidates:
            found = evaluation.evaluate(candidate)
            if candidate.name == "teacher" and candidate.sampler == "ddim":
                baselines.setdefault(candidate.guidance, found["fid"])  # the teacher at the most steps comes first
            rows.append((candidate, found))
            tqdm.write(line_of(cells_of(candidate, found, baselines.get(candidate.guidance))))
        draw_figure(rows, title, folder / "fid.png")
        if len(set(arguments.guidance)) > 1 and any(found.get("right") for _, found in rows):
            draw_trade_off(rows, title, folder / "guidance.png")
    print(f"wrote results.json and the figures to {folder}")


if __name__ == "__main__":
    cli.run(main)
