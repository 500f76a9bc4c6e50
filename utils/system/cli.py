"""The command line: flags that several scripts share, and errors in one line."""

import argparse
import ctypes
import gc
import io
import signal
import sys
from collections.abc import Callable
from functools import partialmethod
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from utils.system import distributed
from utils.system.errors import InputError
from utils.system.signals import Interrupted, Terminated

if not sys.stderr.isatty():  # in a log file, progress bars are updated twice a minute
    tqdm.__init__ = partialmethod(tqdm.__init__, mininterval=30)

_restarted = False  # whether --restart has been carried out
CONFIG_KEY = "config:"  # prefix of the destination of flags that override a key of the configuration


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raises an InputError, instead of printing the whole usage."""
        raise InputError(f"{message} (--help explains the flags)")

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:
        """As usual; then connects the processes, and ignores a --restart from before torchrun started them again."""
        arguments = super().parse_args(*args, **kwargs)
        distributed.connect()
        if getattr(arguments, "restart", False):
            global _restarted
            _restarted = distributed.is_done("restart")
            arguments.restart = not _restarted
        return arguments

    def add_override(self, flag: str, key: str, help: str, type: Callable[[str], Any] = int, **options: Any) -> None:
        """Adds a flag that overrides a key of the configuration."""
        options = {"metavar": "N", "help": f"{help} (default: the config's {key})"} | options
        self.add_argument(flag, dest=CONFIG_KEY + key, type=type, **options)

    def add_count(self, flag: str, help: str, default: int | None = None, **options: Any) -> None:
        """Adds a flag that takes a positive integer; the help of one without a default explains what happens then."""
        if default is not None:
            help = f"{help} (default: {default})"
        self.add_argument(flag, type=positive_int, default=default, metavar="N", help=help, **options)

    def add_config_path(self) -> None:
        """Adds --config_path."""
        help = "the configuration (configs/ddpm_32x32_v_continuous.yaml explains every key); required"
        self.add_argument("--config_path", required=True, metavar="YAML", help=help)

    def add_run_arguments(self, section: str, output_dir: str) -> None:
        """Adds the flags of a script that trains with the settings of a section of the configuration."""
        self.add_config_path()
        self.add_argument("--output_dir", metavar="FOLDER", help=f"where everything is written (default: {output_dir})")
        self.add_override("--batch_size", f"{section}.batch_size", "images per step")
        every = "save_and_sample_every_n"
        self.add_override(f"--{every}", f"{section}.{every}", "steps between checkpoints")
        self.add_override("--seed", "seed", "seed of weights, data order, noise and samples")
        help = "additional logs, such as tensorboard"
        self.add_override("--loggers", f"{section}.loggers", help, type=str, nargs="*", metavar="NAME")
        self.add_compute_arguments()
        help = "delete the earlier run in the folder, and start again (default: resume it)"
        self.add_argument("--restart", action="store_true", help=help)

    def add_compute_arguments(self) -> None:
        """Adds --precision, --compile and --device, which utils/checkpoints/compute.py reads."""
        help = "precision of convolutions and attention; auto: bf16 where it is faster"
        self.add_override("--precision", "precision", help, type=str, choices=["auto", "fp32", "bf16"], metavar=None)
        help = "compile the network; auto: if the run is long enough to gain from it"
        options = {"type": lambda text: {"true": True, "false": False}.get(text, text), "metavar": "{auto,true,false}"}
        self.add_override("--compile", "compile", help, **options)
        help = "cpu, cuda, cuda:1, mps, ... (default: the GPU if there is one)"
        self.add_argument("--device", metavar="NAME", help=help)


def restart_is_done() -> None:
    """Call this once --restart has deleted the earlier run: torchrun may start the same command again."""
    global _restarted
    _restarted = True
    distributed.mark_done("restart")


def how_to_continue() -> str:
    """The command that resumes the run: once --restart has been carried out, without it."""
    return "the same command" + (" without --restart" if _restarted else "")


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The given flags that override keys of the configuration, by dotted key."""
    return {
        name.removeprefix(CONFIG_KEY): value
        for name, value in vars(arguments).items()
        if name.startswith(CONFIG_KEY) and value is not None
    }


def positive_int(text: str) -> int:
    """argparse type: a positive integer."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"should be a positive integer, not {text!r}")
    return int(text)


def keep_freed_memory() -> None:
    """Makes the C library of Linux keep the memory of freed tensors, since each page from the system is a page fault.

    A step frees and allocates the same large blocks again: an eighth of the time of a training on two cores.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        # An older library refuses so large a threshold; the other, set alone, would fix this one at its small default.
        if mallopt(m_mmap_threshold, 2**30):
            mallopt(m_trim_threshold, 2**31 - 1)


def run(main: Callable[[], None]) -> None:
    """Runs a script: an InputError becomes one line on stderr and exit code 2; a bug keeps its traceback."""
    keep_freed_memory()
    if not gc.get_freeze_count():  # the garbage collector skips what the imports made: a script ends a second sooner
        gc.freeze()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # letters that the terminal cannot show become question marks
            stream.reconfigure(errors="replace")
    before = signal.signal(signal.SIGTERM, Terminated.handle)
    try:
        main()
        distributed.disconnect()
    except InputError as error:
        leave(2, f"error: {' '.join(str(error).split())}")
    except Interrupted as interrupted:
        leave(interrupted.exit_code, f"stopped and saved: {interrupted}; {how_to_continue()} resumes from there")
    except KeyboardInterrupt as interrupt:
        exit_code = 143 if isinstance(interrupt, Terminated) else 130
        leave(exit_code, f"interrupted; all written files are complete, and {how_to_continue()} resumes, or starts")
    except RuntimeError as error:
        if problem := explain_runtime_error(error):
            leave(*problem)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(exit_code: int, message: str) -> NoReturn:
    """Ends the process with a line on stderr, without control characters; equal lines of several ranks appear once."""
    message = "".join(letter if letter.isprintable() else "?" for letter in message)
    if distributed.is_first_to_print(message):
        print(f"{sys.argv[0]}: {message}", file=sys.stderr)
    sys.exit(exit_code)


def explain_runtime_error(error: RuntimeError) -> tuple[int, str] | None:
    """Exit code and line for PyTorch's errors that are not bugs, None for others."""
    cause = str(error).strip().split("\n")[0][:300]
    if distributed.is_lost_peer(error):
        problem = f"another process of this run has ended, or no longer answers ({cause})"
        return 1, f"error: {problem}; {how_to_continue()} resumes from the last checkpoint"
    if distributed.is_of_communication(error):
        return 2, f"error: the processes cannot be connected: {cause}"
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return 2, (
            "error: out of memory; a smaller batch_size, more accumulation_steps (which train with the same batch in "
            "micro-batches), or a smaller network need less"
        )
    return None
