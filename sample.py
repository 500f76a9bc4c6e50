"""Draws pictures from a checkpoint, or from several, to be compared.

    python sample.py --checkpoint output/distilled/ddpm_32x32_v_continuous_small/7_8/diffusion-360.pt
    python sample.py --compare TEACHER.pt:1024 TEACHER.pt:8 STUDENT.pt:8 --output output/comparison.png

A checkpoint is sampled with the number of steps that it was distilled for; an undistilled one with 1024. Sample i
starts from the same noise in every model and at every batch size: it depends on the seed and on i alone. So models
can also be compared in numbers: how far each picture is from the first panel's, in [-1, 1].
"""

import utils  # noqa: F401 (first: from here on Ctrl-C ends quietly)

# isort: split
import argparse
import re
import time
from pathlib import Path

import torch
from torch import Tensor

from utils import cli
from utils.checkpoint_files import load_checkpoint
from utils.checkpoints import Checkpoint
from utils.compute import FORWARD_PASSES, Compute
from utils.config import load_config
from utils.errors import InputError
from utils.files import prepare_folder
from utils.pictures import comparison, grid, save_picture
from utils.sampling import draw_samples


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = cli.Parser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--checkpoint", metavar="CHECKPOINT", help="the diffusion-<step>.pt to sample; this or --compare is required"
    )
    what.add_argument(
        "--compare",
        nargs="+",
        metavar="CHECKPOINT:STEPS",
        help="what to draw from the same noise, each in a panel (default of STEPS: the checkpoint's own number)",
    )
    parser.add_argument(
        "--config_path", metavar="YAML", help="refuse a checkpoint of another model than this (default: no check)"
    )
    parser.add_count("--num_samples", "pictures to draw", 64)
    parser.add_count("--batch_size", "pictures drawn at once (default: the checkpoint's sampling.batch_size)")
    parser.add_count(
        "--sampling_steps",
        "steps from noise to picture (default: what the checkpoint was distilled for, 1024 if undistilled)",
    )
    parser.add_argument(
        "--sampler",
        choices=["ddim", "ancestral"],
        help="deterministic, or with noise in each step (default: sampling.sampler of the checkpoint's config)",
    )
    parser.add_argument(
        "--class",
        dest="classes",
        nargs="+",
        action="extend",
        metavar="CLASS",
        help="names or numbers of the classes to draw, in turn (default: all)",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        metavar="SCALE",
        help="how clearly pictures should be of their class, at the cost of variety; 1: as the model was trained "
        "(default: sampling.guidance of the checkpoint's config; students: in the range that they learned)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/grid.png"),
        metavar="PNG",
        help="where the picture goes (default: output/grid.png)",
    )
    parser.add_compute_arguments()
    return parser.parse_args()


def parse_panel(text: str) -> tuple[Checkpoint, int]:
    """Reads CHECKPOINT:STEPS; without :STEPS, the checkpoint's own number."""
    path, steps = split_steps(text)
    if steps is None:
        checkpoint = load_checkpoint(text)
        return checkpoint, checkpoint.default_sampling_steps
    if steps == 0:
        raise InputError(f"--compare {text}: the number of steps should be a whole number above 0")
    return load_checkpoint(path), steps


def split_steps(text: str) -> tuple[str, int | None]:
    """CHECKPOINT and the number in CHECKPOINT:STEPS; None without one."""
    path, _, steps = text.rpartition(":")
    return (path, int(steps)) if path and re.fullmatch("[0-9]{1,9}", steps) else (text, None)


def choose_panels(arguments: argparse.Namespace) -> list[tuple[Checkpoint, int]]:
    """The checkpoints to sample, each with its number of steps.

    Raises:
        InputError: a checkpoint that cannot be read, is of another model than asked for, or draws in another size.
    """
    if arguments.compare:
        if arguments.sampling_steps:
            raise InputError("--sampling_steps: not with --compare, which takes CHECKPOINT:STEPS")
        panels = [parse_panel(text) for text in arguments.compare]
    else:
        path, steps = split_steps(arguments.checkpoint)
        if path.endswith(".pt") and steps is not None:
            raise InputError(f"--checkpoint {arguments.checkpoint}: the number of steps goes to --sampling_steps")
        checkpoint = load_checkpoint(arguments.checkpoint)
        panels = [(checkpoint, arguments.sampling_steps or checkpoint.default_sampling_steps)]
    if arguments.config_path:
        config = load_config(arguments.config_path)
        for checkpoint, _ in panels:
            checkpoint.require_same_model(config, arguments.config_path)
    for checkpoint, _ in panels:
        if arguments.guidance is not None:
            checkpoint.require_guidance(arguments.guidance)
        for name in arguments.classes or ():
            checkpoint.class_number(name)
    sizes = [checkpoint.config.data.image_size for checkpoint, _ in panels]
    if len(set(sizes)) > 1:
        raise InputError(f"--compare: pictures of different sizes, {' and '.join(map(str, sizes))} pixels")
    return panels


def draw(
    checkpoint: Checkpoint, steps: int, guidance: float, arguments: argparse.Namespace, device: torch.device
) -> Tensor:
    """The samples that the arguments ask of a checkpoint, [N, C, H, W] in [-1, 1]."""
    sampling = checkpoint.config.sampling
    chosen = {
        "batch_size": arguments.batch_size or sampling.batch_size,
        "sampler": arguments.sampler or sampling.sampler,
    }
    sampling = sampling.model_copy(update=chosen)
    config = checkpoint.config.model_copy(update={"sampling": sampling, **cli.overrides(arguments)})
    compute = Compute.choose(config, device, passes=FORWARD_PASSES * arguments.num_samples * steps, training=False)
    model = compute.for_inference(checkpoint.model(device), sampling.batch_size)
    options = {"guidance": guidance, "seed": arguments.seed, "device": device}
    options["classes"] = [checkpoint.class_number(name) for name in arguments.classes or ()]
    return draw_samples(model, config, arguments.num_samples, sampling_steps=steps, **options)


def label_of(checkpoint: Checkpoint, steps: int, guidance: float, panels: list[tuple[Checkpoint, int]]) -> str:
    """The label of a panel; checkpoints that share a number of sampling steps are told apart by their paths."""
    who = "teacher" if checkpoint.sampling_steps is None else f"distilled to {checkpoint.sampling_steps}"
    alike = {other.path.with_suffix("") for other, _ in panels if other.sampling_steps == checkpoint.sampling_steps}
    if len(alike) > 1:
        parts = next(n for n in range(2, 99) if len({path.parts[-n:] for path in alike}) == len(alike))
        who += f" ({Path(*checkpoint.path.with_suffix('').parts[-parts:])})"
    text = f"{who}, {steps} step{'s' if steps > 1 else ''}"
    return text if guidance == 1 else f"{text}, guidance {guidance:g}"


def distance_between(first: Checkpoint, other: Checkpoint, images: tuple[Tensor, Tensor]) -> str:
    """How far the samples of two checkpoints are from each other, or why that cannot be said."""
    for what, of_first, of_other in (
        ("channels", first.config.data.num_channels, other.config.data.num_channels),
        ("classes", first.config.network.num_classes, other.config.network.num_classes),
    ):
        if of_first != of_other:
            return f"not compared with the first panel, which has {of_first} {what} and not {of_other}"
    distance = (images[1] - images[0]).square().mean().sqrt()
    return f"root mean squared difference from the first panel {distance:.3f}"


def class_names_of(panels: list[tuple[Checkpoint, int]], chosen: list[str] | None) -> list[str]:
    """The names that head the columns; none where the panels have other classes, which would not be each other's."""
    names = [
        [checkpoint.class_names[checkpoint.class_number(name)] for name in chosen] if chosen else checkpoint.class_names
        for checkpoint, _ in panels
    ]
    return names[0] if all(len(other) == len(names[0]) for other in names) else []


def main() -> None:
    """Checks everything before anything is drawn; then draws one set of samples after the other."""
    arguments = parse_arguments()
    device = cli.choose_device(arguments.device)
    panels = choose_panels(arguments)
    if arguments.output.suffix.lower() != ".png":
        raise InputError(f"--output {arguments.output}: should be the name of a .png file")
    prepare_folder(arguments.output.parent)
    print(f"sampling on {device}, writing to {arguments.output}")

    pictures: list[tuple[str, Tensor]] = []
    for checkpoint, steps in panels:
        start = time.perf_counter()
        guidance = checkpoint.default_guidance if arguments.guidance is None else arguments.guidance
        images = draw(checkpoint, steps, guidance, arguments, device)
        label = label_of(checkpoint, steps, guidance, panels)
        report = f"{label}: {len(images)} pictures in {time.perf_counter() - start:.1f} s"
        if pictures:
            report += f", {distance_between(panels[0][0], checkpoint, (pictures[0][1], images))}"
        print(report)
        pictures.append((label, images))

    names = class_names_of(panels, arguments.classes)
    picture = comparison(pictures, names) if arguments.compare else grid(pictures[0][1], names)
    save_picture(picture, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    cli.run(main)
