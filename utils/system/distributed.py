"""Distributed training: torchrun starts the processes, `torch.distributed` connects them.

    torchrun --standalone --nproc_per_node=2 train.py --config_path ...

Every rank runs the same script and takes the same decisions. Rank 0 alone reads, writes and prints; the other ranks get
its results and errors (`on_rank_zero`). Only the data set is read by each rank (`rank_zero_first`). A process started
without torchrun is rank 0 of a world of size 1, and none of this has an effect.
"""

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import cache, partialmethod, wraps
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from utils.system.errors import InputError

PATIENCE = 15  # seconds until a message says what is waited for
# If a process ends, the others notice at once; if a machine is lost, they notice after this time.
STEP_TIMEOUT, COMPILATION_TIMEOUT = timedelta(minutes=1), timedelta(minutes=10)
# One rank may download and prepare data, or write a checkpoint, while the others wait.
LONGEST_WAIT = timedelta(hours=12)
LOST_PEER_ERRORS = ("closed by peer", "reset by peer", "connection reset", "broken pipe", "timed out", "timeout")

P, R, T = ParamSpec("P"), TypeVar("R"), TypeVar("T")
_store: dist.Store | None = None  # shared by the processes that started together
_launch_store: dist.Store | None = None  # of torchrun, which outlives its restarts of the processes
_acts_alone = False  # while this rank runs code that the others do not run


def connect() -> None:
    """Connects the processes that torchrun started; from then on, only rank 0 prints and shows progress bars."""
    if dist.is_initialized() or not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return
    connected: Future[None] = Future()

    def run() -> None:
        try:
            connected.set_result(_connect())
        except BaseException as error:
            connected.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # Ctrl-C would not interrupt the wait itself
    if not wait([connected], PATIENCE).done:
        text = "process {RANK} of {WORLD_SIZE} waits for the others, at {MASTER_ADDR}: the environment variables "
        text += "RANK and WORLD_SIZE are set, as by torchrun; without them, this is one process"
        print(text.format(**os.environ), file=sys.stderr, flush=True)
    connected.result()
    if not is_rank_zero():
        sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115 (until the end)
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)  # all bars, also those of libraries


def _connect() -> None:
    global _store, _launch_store
    _launch_store, rank, world_size = next(dist.rendezvous("env://"))
    _store = dist.PrefixStore(_name_of_start(_launch_store, rank, world_size), _launch_store)
    dist.init_process_group("gloo", store=_store, rank=rank, world_size=world_size, timeout=LONGEST_WAIT)


def disconnect() -> None:
    """Disconnects the processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _name_of_start(store: dist.Store, rank: int, world_size: int) -> str:
    """A name that rank 0 invents, and sends to the ranks that started with it.

    After a restart by torchrun the store still holds entries of the previous processes, above all their addresses, and
    machines may disagree on the number of restarts (https://github.com/pytorch/pytorch/issues/135712).
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"process/{rank}", own)
        name = store.get(f"name for/{own}").decode()  # waits for the answer to this process
        store.set(f"heard/{name}/{rank}", "")
        return name
    waiting = set(range(1, world_size))
    while waiting:
        for other in waiting:  # before it has started, this may answer its predecessor
            store.set(f"name for/{store.get(f'process/{other}').decode()}", own)
        waiting = {other for other in waiting if not store.check([f"heard/{own}/{other}"])}
        time.sleep(0.02)
    return own


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """The number of this process on its machine, from 0; also that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_rank_zero() -> bool:
    """Whether this process reads, writes and prints."""
    return rank() == 0


def _is_collective() -> bool:
    return world_size() > 1 and not _acts_alone


def all_gather(value: T) -> list[T]:
    """The values of all ranks, in order, on every rank. Tensors should be on the CPU."""
    values = [value] * (world_size() if _is_collective() else 1)
    if _is_collective():
        dist.all_gather_object(values, value)
    return values


def all_reduce_max(*numbers: int, timeout: timedelta) -> list[int]:
    """The maximum over all ranks, for each number."""
    found = torch.tensor(numbers)
    if _is_collective():
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=_step_group("gloo", timeout))
    return found.tolist()


def all_reduce_sum(numbers: Tensor) -> list[float]:
    """The sum over all ranks, for each number [N]; `numbers` itself does not change."""
    found = numbers.to("cpu", copy=True)
    if _is_collective():
        dist.all_reduce(found)
    return found.tolist()


def _attempt(act: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> tuple[R | None, InputError | None]:
    """Calls a function while the other ranks wait; returns its result or its error."""
    global _acts_alone
    before, _acts_alone = _acts_alone, True
    try:
        return act(*args, **kwargs), None
    except InputError as error:
        return None, error
    finally:
        _acts_alone = before


def on_rank_zero(act: Callable[P, R]) -> Callable[P, R]:
    """Decorator: rank 0 alone calls the function; every rank returns its result, or raises its InputError."""

    @wraps(act)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _is_collective():
            return act(*args, **kwargs)
        answer = list(_attempt(act, *args, **kwargs)) if is_rank_zero() else [None, None]
        dist.broadcast_object_list(answer)
        result, error = answer
        if error:
            raise error
        return result

    return call


def rank_zero_first(act: Callable[P, R]) -> Callable[P, R]:
    """Decorator: every rank calls the function, rank 0 first, so that the others find its files on the disk.

    The first rank of every other machine, which may have its own disk, is next, then all others. All raise any error.
    """

    @wraps(act)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _is_collective():
            return act(*args, **kwargs)
        own_turn = 0 if is_rank_zero() else 1 if local_rank() == 0 else 2
        for turn in range(3):
            wrong = None
            if turn == own_turn:
                result, wrong = _attempt(act, *args, **kwargs)
            for error in filter(None, all_gather(wrong)):
                raise error
        return result

    return call


def distributed_map(act: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
    """`map(act, tasks)` on every rank, where each rank computes its part. Results should be on the CPU."""
    for start in range(0, len(tasks), world_size()):
        now = tasks[start : start + world_size()]
        mine = act(now[rank()]) if rank() < len(now) else None
        yield from all_gather(mine)[: len(now)]


def tasks_per_rank(tasks: Sequence) -> int:
    """The most tasks of a `distributed_map` that one rank computes."""
    return -(-len(tasks) // world_size())


def micro_batches(batch_size: int, accumulation_steps: int) -> list[slice]:
    """This rank's shard of a global batch, in `accumulation_steps` consecutive slices of the global batch."""
    parts = world_size() * accumulation_steps
    own = range(rank() * accumulation_steps, (rank() + 1) * accumulation_steps)
    return [slice(batch_size * k // parts, batch_size * (k + 1) // parts) for k in own]


@cache
def _step_group(backend: str, timeout: timedelta) -> dist.ProcessGroup:
    return dist.new_group(backend=backend, timeout=timeout)


def data_parallel(network: nn.Module, device: torch.device, timeout: timedelta) -> nn.Module:
    """The network, with gradients that are averaged over all ranks in each backward pass."""
    if world_size() == 1:
        return network
    group = _step_group("nccl" if device.type == "cuda" else "gloo", timeout)
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, process_group=group, gradient_as_bucket_view=True)


def no_sync(network: nn.Module) -> AbstractContextManager:
    """Within it, each rank accumulates the gradients of a `data_parallel` network without averaging them."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


@on_rank_zero
def is_done(what: str) -> bool:
    """Whether `mark_done` has been called in this torchrun, before it restarted the processes."""
    return _launch_store is not None and _launch_store.check([f"done: {what}"])


@on_rank_zero
def mark_done(what: str) -> None:
    """Remembers, as long as torchrun runs, that something is done."""
    if _launch_store is not None:
        _launch_store.set(f"done: {what}", "")


def is_first_to_print(message: str) -> bool:
    """Whether no other rank has called this with the same message, which should be printed once."""
    try:
        return _store is None or _store.add(f"printed: {message}", 1) == 1
    except RuntimeError:  # torchrun has ended, and with it the store
        return True


def is_of_communication(error: BaseException) -> bool:
    """Whether the connection between processes caused the error."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def is_lost_peer(error: BaseException) -> bool:
    """Whether another process no longer answers."""
    return is_of_communication(error) and any(sign in str(error).lower() for sign in LOST_PEER_ERRORS)
