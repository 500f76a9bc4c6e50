"""Models in and out: a pipeline of diffusers as a teacher; a student for diffusers, ONNX runtimes, or as safetensors.

    python convert.py --from_diffusers FOLDER --output output/teacher/diffusion-0.pt
    python convert.py --checkpoint STUDENT.pt --to_diffusers FOLDER
    python convert.py --checkpoint STUDENT.pt --to_onnx student.onnx
    python convert.py --checkpoint STUDENT.pt --to_safetensors student.safetensors

FOLDER is what `save_pretrained` of a DDPMPipeline or DDIMPipeline writes, and `from_pretrained` reads. The
configuration that goes with such a teacher is written beside it: output/teacher/teacher.yaml, complete but for the
data.
"""

import utils  # noqa: F401 (first: from here on Ctrl-C ends quietly)

# isort: split
import argparse
from pathlib import Path

from utils import cli
from utils.checkpoint_files import SAFETENSORS, load_checkpoint, save_checkpoint, save_safetensors
from utils.checkpoints import Checkpoint
from utils.errors import InputError
from utils.files import prepare_folder, write_atomically
from utils.files.safetensors_file import require_safetensors
from utils.formats.diffusers_export import require_exportable, write_pipeline
from utils.formats.diffusers_folder import read_pipeline
from utils.formats.onnx_file import write_onnx
from utils.formats.teacher_yaml import teacher_yaml
from utils.process.distributed import world_size


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = cli.Parser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--from_diffusers", type=Path, metavar="FOLDER", help="a pipeline; this or --checkpoint is required"
    )
    source.add_argument("--checkpoint", metavar="CHECKPOINT", help="a diffusion-<step>.pt; or this is required")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--output", type=Path, metavar="CHECKPOINT", help="the .pt that it becomes; required with --from_diffusers"
    )
    only = "this or another --to is required with --checkpoint"
    target.add_argument("--to_diffusers", type=Path, metavar="FOLDER", help=f"for DDIMPipeline.from_pretrained; {only}")
    target.add_argument("--to_onnx", type=Path, metavar="ONNX", help=f"v(z, logsnr, label, guidance) as .onnx; {only}")
    target.add_argument("--to_safetensors", type=Path, metavar="FILE", help=f"the same as .safetensors; {only}")
    parser.add_argument(
        "--last_class_is_none",
        action="store_true",
        help="the last class of the pipeline's network stands for none, which guidance needs (default: it does not)",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        metavar="SCALE",
        help="of --to_diffusers: the scale that is built in, where a student takes any (default: its config's "
        "sampling.guidance)",
    )
    arguments = parser.parse_args()
    if (arguments.from_diffusers is None) != (arguments.output is None):
        parser.error("--output goes with --from_diffusers, and the others with --checkpoint")
    if arguments.last_class_is_none and not arguments.from_diffusers:
        parser.error("--last_class_is_none goes with --from_diffusers")
    if arguments.guidance is not None and not arguments.to_diffusers:
        parser.error("--guidance goes with --to_diffusers")
    return arguments


def require_free(path: Path, suffix: str) -> None:
    """Refuses to overwrite, and names of another kind.

    Raises:
        InputError: something is there, or the name should end otherwise.
    """
    if suffix and path.suffix != suffix:
        raise InputError(f"{path}: should be the name of a {suffix} file")
    if path.absolute() == Path.cwd():
        raise InputError(f"{path}: is the current folder; should be the name of another")
    if path.exists() and not (suffix == "" and path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path}: is already there; another name leaves it alone")


def from_diffusers(arguments: argparse.Namespace) -> None:
    """A pipeline becomes a checkpoint, and a configuration beside it."""
    folder, output = arguments.from_diffusers, arguments.output
    config_path = output.with_name(f"{output.absolute().parent.name}.yaml")
    require_free(output, ".pt")
    require_free(config_path, ".yaml")
    config, weights = read_pipeline(folder, last_class_is_none=arguments.last_class_is_none)
    prepare_folder(output.parent)
    text = teacher_yaml(config, source=folder, checkpoint=output, path=config_path)
    save_checkpoint(output, weights, config=config, step=0, sampling_steps=None)
    try:
        write_atomically(config_path, lambda file: file.write(text.encode()))
    except InputError:
        output.unlink()  # or it would be in the way of the same command
        raise
    print(f"wrote {output}, and {config_path}, whose `data` is to be filled in")


def export(checkpoint: Checkpoint, arguments: argparse.Namespace) -> Path:
    """A checkpoint becomes what is asked for; returns where it is."""
    if arguments.to_diffusers:
        scale = arguments.guidance
        if scale is None:
            scale = checkpoint.default_guidance if checkpoint.guidance else 1.0
        checkpoint.require_guidance(scale)
        if scale != 1 and not checkpoint.guidance:
            raise InputError(f"--guidance {scale:g}: {arguments.checkpoint} does not take it, so it cannot be built in")
        require_exportable(checkpoint)
        require_free(arguments.to_diffusers, "")
        prepare_folder(arguments.to_diffusers.parent)
        write_pipeline(checkpoint, arguments.to_diffusers, scale)
        return arguments.to_diffusers
    if arguments.to_onnx:
        require_free(arguments.to_onnx, ".onnx")
        prepare_folder(arguments.to_onnx.parent)
        write_onnx(checkpoint, arguments.to_onnx)
        return arguments.to_onnx
    require_safetensors()
    require_free(arguments.to_safetensors, SAFETENSORS)
    prepare_folder(arguments.to_safetensors.parent)
    save_safetensors(arguments.to_safetensors, checkpoint)
    return arguments.to_safetensors


def main() -> None:
    """Reads one thing, and writes another."""
    arguments = parse_arguments()
    if world_size() > 1:
        raise InputError("convert.py is one process; start it without torchrun")
    if arguments.from_diffusers:
        from_diffusers(arguments)
    else:
        print(f"wrote {export(load_checkpoint(arguments.checkpoint), arguments)}")


if __name__ == "__main__":
    cli.run(main)
