"""What the scripts share at the command line: flags, the device, and errors in one line."""

import argparse
import ctypes
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from utils.errors import InputError
from utils.interruption import Interrupted

CONFIG_KEY = "config:"  # flags whose destination begins so replace a key of the configuration


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Instead of the whole usage, one line."""
        raise InputError(f"{message} (--help explains the flags)")

    def add_override(self, flag: str, key: str, kind: type, help: str) -> None:
        """A flag that replaces a key of the configuration; left out, it leaves the configuration's value."""
        self.add_argument(
            flag, dest=CONFIG_KEY + key, type=kind, metavar="N", help=f"{help} (default: the config's {key})"
        )

    def add_run_arguments(self, section: str, output_dir: str) -> None:
        """The flags of a script that trains as a section of the configuration says."""
        self.add_argument("--config_path", required=True, metavar="YAML", help="the lesson's configuration; required")
        self.add_argument("--output_dir", metavar="FOLDER", help=f"where everything is written (default: {output_dir})")
        self.add_override("--batch_size", f"{section}.batch_size", int, "images a step")
        every = f"{section}.save_and_sample_every_n"
        self.add_override("--save_and_sample_every_n", every, int, "steps from checkpoint to checkpoint")
        self.add_override("--seed", "seed", int, "seed of weights, order, noise and pictures")
        self.add_compute_arguments()
        self.add_argument(
            "--restart",
            action="store_true",
            help="delete what an earlier run left in the folder, and begin anew (default: continue it)",
        )

    def add_compute_arguments(self) -> None:
        """The flags of how to compute, and where: what `choose_device` and utils/compute.py read."""
        self.add_argument(
            "--precision",
            dest=CONFIG_KEY + "precision",
            choices=["auto", "fp32", "bf16"],
            help="of the convolutions and the attention; auto: bf16 where it is native (default: the config's)",
        )
        self.add_argument(
            "--compile",
            dest=CONFIG_KEY + "compile",
            type=auto_or_bool,
            metavar="{auto,true,false}",
            help="compile the network; auto: where it pays for itself within the run (default: the config's)",
        )
        self.add_argument(
            "--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, ... (default: the GPU where there is one)"
        )


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keys of the configuration that flags replace, by dotted name."""
    return {
        name.removeprefix(CONFIG_KEY): value
        for name, value in vars(arguments).items()
        if name.startswith(CONFIG_KEY) and value is not None
    }


def auto_or_bool(text: str) -> bool | str:
    """auto, true or false, as in a YAML, for argparse."""
    values = {"auto": "auto", "true": True, "false": False}
    if text not in values:
        raise argparse.ArgumentTypeError(f"should be auto, true or false, not {text!r}")
    return values[text]


def positive_int(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"should be a whole number above 0, not {text!r}")
    return int(text)


def choose_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is.

    Raises:
        InputError: there is none of that name.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name}: not on this machine; `cpu` always is") from error
    return device


def keep_freed_memory() -> None:
    """Lets the C library of Linux keep the memory of freed tensors instead of giving it back to the system.

    A step frees and takes the same large blocks again; fetched from the system, each of their pages is a fault. On a
    two-core machine that was an eighth of the time of a training run.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)


def run(main: Callable[[], None]) -> None:
    """Runs a script: what the user can mend is one line on stderr and exit code 2; a bug keeps its traceback."""
    keep_freed_memory()
    try:
        main()
    except InputError as error:
        print(f"{sys.argv[0]}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as interrupted:
        print(f"{sys.argv[0]}: stopped, and saved: {interrupted}; the same command goes on from there", file=sys.stderr)
        sys.exit(interrupted.exit_code)
    except KeyboardInterrupt:
        print(f"{sys.argv[0]}: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
