"""The command line: flags that scripts share, the device, and errors in one line."""

import argparse
import ctypes
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from utils.errors import InputError
from utils.process import distributed
from utils.process.interruption import Interrupted, Terminated

_restarted = False  # whether --restart has been carried out
CONFIG_KEY = "config:"  # flags whose destination begins so replace a key of the configuration


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raises an InputError, instead of printing the whole usage."""
        raise InputError(f"{message} (--help explains the flags)")

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:
        """As usual; but a --restart that has been carried out is not, when torchrun starts the command again."""
        arguments = super().parse_args(*args, **kwargs)
        if getattr(arguments, "restart", False):
            global _restarted
            _restarted = distributed.is_done("restart")
            arguments.restart = not _restarted
        return arguments

    def add_override(self, flag: str, key: str, kind: type, help: str) -> None:
        """Adds a flag that overrides a key of the configuration."""
        self.add_argument(
            flag, dest=CONFIG_KEY + key, type=kind, metavar="N", help=f"{help} (default: the config's {key})"
        )

    def add_count(self, flag: str, help: str, default: int | None = None, **options: Any) -> None:
        """Adds a flag that takes a whole number above 0; the help of one without a default says what happens then."""
        if default is not None:
            help = f"{help} (default: {default})"
        self.add_argument(flag, type=positive_int, default=default, metavar="N", help=help, **options)

    def add_config_path(self) -> None:
        """Adds --config_path."""
        self.add_argument("--config_path", required=True, metavar="YAML", help="the lesson's configuration; required")

    def add_run_arguments(self, section: str, output_dir: str) -> None:
        """Adds the flags of a script that trains, whose settings are a section of the configuration."""
        self.add_config_path()
        self.add_argument("--output_dir", metavar="FOLDER", help=f"where everything is written (default: {output_dir})")
        self.add_override("--batch_size", f"{section}.batch_size", int, "images a step")
        every = f"{section}.save_and_sample_every_n"
        self.add_override("--save_and_sample_every_n", every, int, "steps from checkpoint to checkpoint")
        self.add_override("--seed", "seed", int, "seed of weights, order, noise and pictures")
        self.add_argument(
            "--tensorboard",
            dest=f"{CONFIG_KEY}{section}.tensorboard",
            action="store_const",
            const=True,
            help="write the log and the pictures as TensorBoard events, too (default: the config's)",
        )
        self.add_compute_arguments()
        self.add_argument(
            "--restart",
            action="store_true",
            help="delete what an earlier run left in the folder, and begin anew (default: continue it)",
        )

    def add_compute_arguments(self) -> None:
        """Adds --precision, --compile and --device: what `choose_device` and utils/compute.py read."""
        self.add_argument(
            "--precision",
            dest=CONFIG_KEY + "precision",
            choices=["auto", "fp32", "bf16"],
            help="of the convolutions and the attention; auto: bf16 where it is faster (default: the config's)",
        )
        values = "{auto,true,false}"
        self.add_argument(
            "--compile",
            dest=CONFIG_KEY + "compile",
            type=auto_or_bool,
            metavar=values,
            help="compile the network; auto: where it pays for itself within the run (default: the config's)",
        )
        self.add_argument(
            "--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, ... (default: the GPU where there is one)"
        )


def restart_is_done() -> None:
    """To be called when --restart has deleted what there was: torchrun may start the same command again."""
    global _restarted
    _restarted = True
    distributed.mark_done("restart")


def how_to_continue() -> str:
    """What the user has to do to go on: --restart, once it has been carried out, would delete what came after it."""
    return "the same command" + (" without --restart" if _restarted else "")


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keys of the configuration that flags replace, by dotted name."""
    return {
        name.removeprefix(CONFIG_KEY): value
        for name, value in vars(arguments).items()
        if name.startswith(CONFIG_KEY) and value is not None
    }


def auto_or_bool(text: str) -> bool | str:
    """argparse type: auto, true or false, as in a YAML."""
    values = {"auto": "auto", "true": True, "false": False}
    if text not in values:
        raise argparse.ArgumentTypeError(f"should be auto, true or false, not {text!r}")
    return values[text]


def positive_int(text: str) -> int:
    """argparse type: a whole number above 0."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"should be a whole number above 0, not {text!r}")
    return int(text)


def choose_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is; of several processes on a machine, each has a GPU of its own.

    Raises:
        InputError: there is none of that name, or the machine has fewer GPUs than processes.
    """
    try:
        if name is None:
            device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
            if device.type != "cuda" and distributed.world_size() > 1:  # Apple's GPU, of which there is but one
                device = torch.device("cpu")
        else:
            device = torch.device(name)
        if device.type not in ("cpu", "cuda") and distributed.world_size() > 1:
            raise InputError(f"--device {device}: not for several processes; cpu is, and cuda")
        if device.type == "cuda" and distributed.world_size() > 1:
            device = gpu_of_this_rank(device)
        if name is not None:  # on the very device: another would keep memory on the first GPU for each process
            torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name}: not on this machine; `cpu` always is") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # what is waited for, and where libraries put what they are not told
    return device


def gpu_of_this_rank(device: torch.device) -> torch.device:
    """The GPU of this process among those of its machine.

    Raises:
        InputError: the machine has fewer GPUs than processes, or one is asked for by its number.
    """
    if device.index is not None:
        raise InputError(f"--device {device}: each process takes a GPU of its own; say cuda, or leave it out")
    if distributed.local_rank() >= torch.cuda.device_count():
        raise InputError(
            f"torchrun started more processes on this machine than it has GPUs, {torch.cuda.device_count()}; "
            "--nproc_per_node should be as many, or --device cpu"
        )
    return torch.device("cuda", distributed.local_rank())


def keep_freed_memory() -> None:
    """Lets the C library of Linux keep the memory of freed tensors instead of giving it back to the system.

    A step frees and takes the same large blocks again; fetched from the system, each of their pages is a fault. On a
    two-core machine that was an eighth of the time of a training run.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        # An older library refuses so large a threshold; the other, set alone, would fix this one at its small default.
        if mallopt(m_mmap_threshold, 2**30):
            mallopt(m_trim_threshold, 2**31 - 1)


def run(main: Callable[[], None]) -> None:
    """Runs a script: an InputError becomes one line on stderr and exit code 2; a bug keeps its traceback."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as it was while PyTorch was imported: see utils/__init__.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    keep_freed_memory()
    before = signal.signal(signal.SIGTERM, Terminated.handle)
    try:
        with distributed.process_group():
            main()
    except InputError as error:
        leave(2, f"error: {' '.join(str(error).split())}")
    except Interrupted as interrupted:
        leave(interrupted.exit_code, f"stopped, and saved: {interrupted}; {how_to_continue()} goes on from there")
    except KeyboardInterrupt as interrupt:
        exit_code = 143 if isinstance(interrupt, Terminated) else 130
        leave(exit_code, f"interrupted; all that was written is whole, and {how_to_continue()} goes on, or begins")
    except RuntimeError as error:
        if problem := explain_runtime_error(error):
            leave(*problem)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(exit_code: int, message: str) -> NoReturn:
    """Ends the process with a line on stderr; where several ranks have the same line, it is printed once.

    Control characters, which a file's name or content may have brought into it, do not reach the terminal.
    """
    message = "".join(letter if letter.isprintable() else "?" for letter in message)
    if distributed.is_first_to_say(message):
        print(f"{sys.argv[0]}: {message}", file=sys.stderr)
    sys.exit(exit_code)


def explain_runtime_error(error: RuntimeError) -> tuple[int, str] | None:
    """Exit code and line for those of PyTorch's errors that are no bug, None for others."""
    cause = str(error).strip().split("\n")[0][:300]
    if distributed.is_lost_peer(error):
        what = f"another process of this run has ended, or no longer answers ({cause})"
        return 1, f"error: {what}; {how_to_continue()} goes on from the last checkpoint"
    if distributed.is_of_communication(error):
        return 2, f"error: the processes cannot be connected: {cause}"
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return 2, (
            "error: out of memory; less is needed with a smaller batch_size, more accumulation_steps, which train "
            "with the same batch in pieces, or a smaller network"
        )
    return None
