"""Samples a checkpoint, or compares several.

    python sample.py --checkpoint output/distilled/ddpm_32x32_v_continuous_small/7_8/diffusion-360.pt
    python sample.py --checkpoint STUDENT.pt --num_samples 50000 --output samples.npz
    python sample.py --compare TEACHER.pt:1024 TEACHER.pt:8 STUDENT.pt:8 --output output/comparison.png

A student is sampled with the number of steps that it was distilled for, other models with 1024. Sample i starts from
the same noise in every model and at every batch size: it depends only on the seed and on i. So --compare also prints
the root mean squared difference of the samples of each model from those of the first, in [-1, 1].

The output is a grid, or for other tools an .npz or a folder of PNGs, which the same command completes after a kill.
"""

import argparse
import re
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from models.diffusion import Diffusion
from models.samplers import SAMPLERS
from utils.checkpoints.checkpoint import Checkpoint, load_checkpoint
from utils.checkpoints.compute import PASSES, Compute, choose_device
from utils.checkpoints.sampling import batches_of, draw_batch, draw_samples
from utils.config.reading import load_config
from utils.config.schema import MOST_STEPS, Config, SamplerSettings
from utils.evaluation.sample_files import require_new, write_samples
from utils.system import cli
from utils.system.errors import InputError, counted
from utils.system.files import prepare_folder
from utils.system.grids import comparison, grid, save_png

Panel = tuple[Checkpoint, SamplerSettings]


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = cli.Parser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    help = "the checkpoint to sample, diffusion-<step>.pt or .safetensors; this or --compare is required"
    what.add_argument("--checkpoint", metavar="CHECKPOINT", help=help)
    help = "several checkpoints to sample from the same noise, one panel each (default of STEPS: the checkpoint's own)"
    what.add_argument("--compare", nargs="+", metavar="CHECKPOINT:STEPS", help=help)
    parser.add_argument("--config_path", metavar="YAML", help="refuse other models than this (default: no check)")
    parser.add_count("--num_samples", "number of samples", 64)
    parser.add_count("--batch_size", "samples drawn at once (default: the checkpoint's sampling.batch_size)")
    parser.add_count("--sampling_steps", "sampling steps (default: what the checkpoint was distilled for, or 1024)")
    parser.add_argument("--sampler", choices=list(SAMPLERS), help="the sampler (default: see docs/running.md)")
    help = "clip x to [-1, 1] in each step (default: as the checkpoint says; a student is not clipped)"
    parser.add_argument("--clip", action=argparse.BooleanOptionalAction, help=help)
    help = "names or numbers of the classes to sample, in turn (default: all)"
    parser.add_argument("--class", dest="classes", nargs="+", action="extend", metavar="CLASS", help=help)
    help = "more makes samples more clearly of their class, and less varied (default: sampling.guidance of the config)"
    parser.add_argument("--guidance", type=float, metavar="SCALE", help=help)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")
    help = "a .png: all samples as a grid; an .npz; or a folder, for one PNG each (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path("output/grid.png"), metavar="PATH", help=help)
    parser.add_compute_arguments()
    return parser.parse_args()


def split_steps(text: str) -> tuple[str, int | None]:
    """CHECKPOINT and the number in CHECKPOINT:STEPS, or None."""
    path, _, steps = text.rpartition(":")
    return (path, int(steps)) if path and re.fullmatch("[0-9]{1,9}", steps) else (text, None)


def choose_panels(arguments: argparse.Namespace) -> list[Panel]:
    """The checkpoints to sample, each with its sampler and number of steps. Raises InputError if one does not fit."""
    if arguments.compare and arguments.sampling_steps:
        raise InputError("--sampling_steps: not with --compare, which takes CHECKPOINT:STEPS")
    requested = [(arguments.checkpoint, arguments.sampling_steps)]
    if arguments.compare:
        requested = [split_steps(text) for text in arguments.compare]
    config, panels = arguments.config_path and load_config(arguments.config_path), []
    for path, steps in requested:
        if steps is not None and not 0 < steps <= MOST_STEPS:
            raise InputError(f"{path}: {steps} sampling steps; should be from 1 to {MOST_STEPS}")
        checkpoint = load_checkpoint(path)
        if config:
            checkpoint.require_same_model(config, arguments.config_path)
        checkpoint.require_guidance(scale_of(checkpoint, arguments))
        for name in arguments.classes or ():
            checkpoint.class_number(name)
        own = checkpoint.sampling
        by_default = own.sampler
        if arguments.compare and checkpoint.kind == "student":
            by_default = "ddim"  # with the same noise it imitates its teacher's DDIM samples, one by one
        update = {"steps": steps or own.steps, "sampler": arguments.sampler or by_default}
        update["clip"] = own.clip if arguments.clip is None else arguments.clip
        if checkpoint.is_student and update["steps"] != own.steps:
            times = f"in {update['steps']} steps it is sampled at times that it was not trained at"
            print(f"note: {path} was distilled for {counted(own.steps, 'step')}; {times}")
        panels.append((checkpoint, own.model_copy(update=update)))
    sizes = sorted({checkpoint.config.data.image_size for checkpoint, _ in panels})
    if len(sizes) > 1:
        raise InputError(f"--compare: images of different sizes, {' and '.join(map(str, sizes))} pixels")
    return panels


def scale_of(checkpoint: Checkpoint, arguments: argparse.Namespace) -> float:
    """The guidance scale to sample a checkpoint with."""
    return checkpoint.default_guidance if arguments.guidance is None else arguments.guidance


def sampled(panel: Panel, arguments: argparse.Namespace, device: torch.device) -> tuple[Diffusion, Config, dict]:
    """The arguments of `draw_samples` and `draw_batch` for a panel."""
    (checkpoint, sampling), count = panel, arguments.num_samples
    config = checkpoint.config.model_copy(update=cli.overrides(arguments))
    batch_size = arguments.batch_size or config.sampling.batch_size
    compute = Compute.choose(config, device, passes=PASSES["sampling"] * count * sampling.steps, training=False)
    model = compute.for_inference(checkpoint.model(device), batch_size)
    options = {"guidance": scale_of(checkpoint, arguments), "seed": arguments.seed, "device": device}
    options["classes"] = [checkpoint.class_number(name) for name in arguments.classes or ()]
    return model, config, {"sampling": sampling, **options}


def write_files(panel: Panel, arguments: argparse.Namespace, device: torch.device) -> None:
    """Writes the samples as an .npz or into a folder; what is there already is not drawn again."""
    model, config, options = sampled(panel, arguments, device)
    batches = batches_of(arguments.num_samples, arguments.batch_size or config.sampling.batch_size)
    classes = options["classes"] or range(config.network.num_classes)
    labels = [classes[i % len(classes)] for i in range(arguments.num_samples)] if classes else []
    settings = {"checkpoint": panel[0].sha256, "sampler": panel[1].model_dump(), "classes": options["classes"]}
    settings |= {name: options[name] for name in ("guidance", "seed")}
    draw_one = partial(draw_batch, model, config, tick=lambda: None, **options)
    write_samples(arguments.output, draw_one, batches, labels, settings)


def label_of(panel: Panel, panels: list[Panel], guidance: float) -> str:
    """The label of a panel; models of the same kind are distinguished by their paths."""

    def kind(checkpoint: Checkpoint) -> str:
        name = "matched student" if checkpoint.kind == "matched" else checkpoint.kind
        return f"{name} of {checkpoint.sampling.steps}" if checkpoint.is_student else name

    checkpoint, sampling = panel
    same = {other.path.with_suffix("") for other, _ in panels if kind(other) == kind(checkpoint)}
    parts = next(n for n in range(1, 99) if len({path.parts[-n:] for path in same}) == len(same))
    path = Path(*checkpoint.path.with_suffix("").parts[-max(parts, 2) :])
    text = checkpoint.kind if sampling.steps == checkpoint.sampling.steps else kind(checkpoint)
    text = f"{text} ({path})" if len(same) > 1 else text
    text += f", {counted(sampling.steps, 'step')}{', clipped' if sampling.clip else ''}"
    return text if guidance == 1 else f"{text}, guidance {guidance:g}"


def same_classes(first: Checkpoint, other: Checkpoint) -> bool:
    """Whether two models have the same classes, as far as their names are known."""
    counts = {each.config.network.num_classes for each in (first, other)}
    names = {tuple(each.known_class_names) for each in (first, other)}
    return len(counts) == 1 and len(names - {()}) < 2


def difference(first: Checkpoint, other: Checkpoint, samples: tuple[Tensor, Tensor]) -> str:
    """The difference between the samples of two checkpoints, or why they cannot be compared."""
    if first.config.data.num_channels != other.config.data.num_channels or not same_classes(first, other):
        return "not compared with the first panel, which has other channels or classes"
    return f"root mean squared difference from the first panel {(samples[1] - samples[0]).square().mean().sqrt():.3f}"


def main() -> None:
    """Checks everything before sampling; then samples one panel after the other."""
    arguments = parse_arguments()
    device = choose_device(arguments.device)
    panels = choose_panels(arguments)
    is_grid = arguments.output.suffix.lower() == ".png"
    if arguments.compare and not is_grid:
        raise InputError(f"--output {arguments.output}: should be the name of a .png file, with --compare")
    if not is_grid:
        require_new(arguments.output)
    prepare_folder(arguments.output.parent)
    print(f"sampling on {device}, writing to {arguments.output}")
    if not is_grid:
        write_files(panels[0], arguments, device)
        print(f"wrote {arguments.output}")
        return
    drawn: list[tuple[str, Tensor]] = []
    for panel in panels:
        start = time.perf_counter()
        model, config, options = sampled(panel, arguments, device)
        samples = draw_samples(model, config, arguments.num_samples, batch_size=arguments.batch_size, **options)
        label = label_of(panel, panels, options["guidance"])
        report = f"{label}: {len(samples)} samples in {time.perf_counter() - start:.1f} s"
        if drawn:
            report += f", {difference(panels[0][0], panel[0], (drawn[0][1], samples))}"
        print(report)
        drawn.append((label, samples))
    first = panels[0][0]
    names = [first.class_names[first.class_number(name)] for name in arguments.classes or first.class_names]
    if not all(same_classes(first, checkpoint) for checkpoint, _ in panels):
        names = []  # the columns of the panels have different classes
    save_png(comparison(drawn, names) if arguments.compare else grid(drawn[0][1], names), arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    cli.run(main)
