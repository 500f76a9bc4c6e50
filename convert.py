"""Converts models: a pipeline of diffusers to a teacher; a student for diffusers, ONNX runtimes, or as safetensors.

    python convert.py --from_diffusers PIPELINE --output output/teacher/diffusion-0.pt
    python convert.py --checkpoint STUDENT.pt --to_diffusers FOLDER
    python convert.py --checkpoint STUDENT.pt --to_onnx student.onnx
    python convert.py --checkpoint STUDENT.pt --to_safetensors student.safetensors

FOLDER is the folder of `save_pretrained` and `from_pretrained` of a DDPMPipeline or DDIMPipeline, and PIPELINE such a
folder, or the name of one on the Hugging Face hub, such as google/ddpm-cifar10-32. The configuration of a converted
teacher is written beside it: output/teacher/teacher.yaml, complete except for the data.
"""

import argparse
from pathlib import Path

from utils.checkpoints.checkpoint import SAFETENSORS, Checkpoint, load_checkpoint, save_checkpoint, save_safetensors
from utils.checkpoints.from_diffusers import read_pipeline, teacher_yaml
from utils.checkpoints.hub import fetch_pipeline, is_hub_name
from utils.checkpoints.to_diffusers import require_exportable, write_pipeline
from utils.checkpoints.to_onnx import write_onnx
from utils.system import cli
from utils.system.distributed import world_size
from utils.system.errors import InputError
from utils.system.files import prepare_folder, write_atomically


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = cli.Parser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    help = "a folder, or a name on the hub; this or --checkpoint is required"
    source.add_argument("--from_diffusers", metavar="PIPELINE", help=help)
    help = "a diffusion-<step>.pt; this or --from_diffusers is required"
    source.add_argument("--checkpoint", metavar="CHECKPOINT", help=help)
    target = parser.add_mutually_exclusive_group(required=True)
    help = "the .pt to write; required with --from_diffusers"
    target.add_argument("--output", type=Path, metavar="CHECKPOINT", help=help)
    only = "this or another --to is required with --checkpoint"
    target.add_argument("--to_diffusers", type=Path, metavar="FOLDER", help=f"for diffusers; {only}")
    target.add_argument("--to_onnx", type=Path, metavar="ONNX", help=f"v(z, logsnr, label, guidance) as .onnx; {only}")
    target.add_argument("--to_safetensors", type=Path, metavar="FILE", help=f"the checkpoint as .safetensors; {only}")
    help = "of --to_safetensors: store weights in half precision (default: in float32)"
    parser.add_argument("--half", action="store_true", help=help)
    help = "the last class of the pipeline is the unconditional one, which guidance needs (default: it is not)"
    parser.add_argument("--last_class_is_none", action="store_true", help=help)
    help = "of a pipeline on the hub: its branch, tag or commit (default: the newest)"
    parser.add_argument("--revision", metavar="NAME", help=help)
    help = "of --to_diffusers: the guidance scale to build in, if a student takes one (default: its config's)"
    parser.add_argument("--guidance", type=float, metavar="SCALE", help=help)
    arguments = parser.parse_args()
    if (arguments.from_diffusers is None) != (arguments.output is None):
        parser.error("--output goes with --from_diffusers, and the others with --checkpoint")
    of_pipelines = {"last_class_is_none": "from_diffusers", "revision": "from_diffusers"}
    for flag, other in {**of_pipelines, "half": "to_safetensors", "guidance": "to_diffusers"}.items():
        if getattr(arguments, flag) is not parser.get_default(flag) and not getattr(arguments, other):
            parser.error(f"--{flag} goes with --{other}")
    return arguments


def require_free(path: Path, suffix: str) -> None:
    """Raises InputError if the name has another suffix, or something is there already."""
    if suffix and path.suffix != suffix:
        raise InputError(f"{path}: should be the name of a {suffix} file")
    if path.absolute() == Path.cwd():
        raise InputError(f"{path}: is the current folder; should be the name of another")
    if path.exists() and not (suffix == "" and path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path}: exists already; choose another name")


def from_diffusers(arguments: argparse.Namespace) -> None:
    """Converts a pipeline to a checkpoint, and a configuration beside it."""
    source, output = arguments.from_diffusers, arguments.output
    config_path = output.with_name(f"{output.resolve().parent.name}.yaml")
    require_free(output, ".pt")
    require_free(config_path, ".yaml")
    folder = Path(source)
    if is_hub_name(source):
        prepare_folder(output.parent)  # before the download
        folder, commit = fetch_pipeline(source, arguments.revision)
        source = f"{source}, commit {commit}"
    elif arguments.revision:
        raise InputError(f"--revision: {source} is not the name of a model on the hub")
    metadata, weights = read_pipeline(folder, last_class_is_none=arguments.last_class_is_none)
    prepare_folder(output.parent)
    text = teacher_yaml(metadata.config, source=source, checkpoint=output, path=config_path)
    save_checkpoint(output, metadata, weights)
    try:
        write_atomically(config_path, lambda file: file.write(text.encode()))
    except InputError:
        output.unlink()  # otherwise it would be in the way of the same command
        raise
    print(f"wrote {output}, and {config_path}; fill in its `data`")


def export(checkpoint: Checkpoint, arguments: argparse.Namespace) -> Path:
    """Writes a checkpoint in another format; returns its path."""
    if path := arguments.to_diffusers:
        scale = arguments.guidance
        if scale is None:
            scale = checkpoint.default_guidance if checkpoint.guidance else 1.0
        checkpoint.require_guidance(scale)
        if scale != 1 and not checkpoint.guidance:
            raise InputError(f"--guidance {scale:g}: {arguments.checkpoint} does not take it, so it cannot be built in")
        require_exportable(checkpoint)
        suffix, write = "", lambda: write_pipeline(checkpoint, path, scale)
    elif path := arguments.to_onnx:
        suffix, write = ".onnx", lambda: write_onnx(checkpoint, path)
    else:
        path = arguments.to_safetensors
        suffix, write = SAFETENSORS, lambda: save_safetensors(path, checkpoint, half=arguments.half)
    require_free(path, suffix)
    prepare_folder(path.parent)
    write()
    if checkpoint.sampling.sampler == "ancestral" and checkpoint.sampling.variance_fraction and suffix != SAFETENSORS:
        print(f"note: its sampling.variance is {checkpoint.sampling.variance}; the written model is sampled with small")
    return path


def main() -> None:
    """Reads one format, and writes another."""
    arguments = parse_arguments()
    if world_size() > 1:
        raise InputError("convert.py is one process; start it without torchrun")
    if arguments.from_diffusers:
        from_diffusers(arguments)
    else:
        path = export(load_checkpoint(arguments.checkpoint), arguments)
        print(f"wrote {path}")
        if arguments.to_diffusers:
            print(f"after you have completed its model card, README.md: hf upload {path.name} {path}")


if __name__ == "__main__":
    cli.run(main)
