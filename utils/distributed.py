"""Several processes at one job: torchrun starts them, PyTorch's distributed engine connects them.

    torchrun --standalone --nproc_per_node=2 train.py --config_path ...

Each runs the same script and comes to the same decisions, since the disk is left to the first: it alone reads and
writes, and what it finds there, errors too, it tells the others (`by_first`). It alone speaks. A process that was
started alone is the first of one, and none of this does anything.
"""

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import InputError

# The end of a process is noticed at once, that of a machine when it has not answered within a step for so long.
STEP_TIMEOUT, COMPILATION_TIMEOUT = timedelta(minutes=1), timedelta(minutes=10)
# One process may fetch data, or write a checkpoint, while the others wait.
LONGEST_WAIT = timedelta(hours=1)

P, R, T = ParamSpec("P"), TypeVar("R"), TypeVar("T")
_store: dist.Store | None = None
_acts_alone = False  # while what only some of the processes do is being done


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that torchrun started are connected, and only the first one's output is seen."""
    global _store
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        yield
        return
    store, rank, world_size = next(dist.rendezvous("env://"))
    _store = dist.PrefixStore(_name_of_this_start(store, rank, world_size), store)
    dist.init_process_group("gloo", store=_store, rank=rank, world_size=world_size, timeout=LONGEST_WAIT)
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
    yield
    dist.destroy_process_group()


def _name_of_this_start(store: dist.Store, rank: int, world_size: int) -> str:
    """A name that the first process makes up, and tells all others that have started with it.

    Where torchrun has restarted them, the store still holds what the dead left there, their addresses above all, and
    the number of restarts may be another on each machine (https://github.com/pytorch/pytorch/issues/135712).
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"process/{rank}", own)
        name = store.get(f"name for/{own}").decode()  # waits; nobody has answered this before
        store.set(f"heard/{name}/{rank}", "")
        return name
    waiting = set(range(1, world_size))
    while waiting:
        for other in waiting:  # what it says may be of the dead, until it has started
            store.set(f"name for/{store.get(f'process/{other}').decode()}", own)
        waiting = {other for other in waiting if not store.check([f"heard/{own}/{other}"])}
        time.sleep(0.02)
    return own


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """The number of this process on its machine, from 0: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_first() -> bool:
    """Whether this is the process that reads, writes and speaks."""
    return rank() == 0


@contextmanager
def _alone() -> Iterator[None]:
    global _acts_alone
    before, _acts_alone = _acts_alone, True
    try:
        yield
    finally:
        _acts_alone = before


def _shared() -> bool:
    return count() > 1 and not _acts_alone


def all_of(value: T) -> list[T]:
    """The values of all processes, in their order, in every process. Tensors in it should lie on the CPU."""
    if not _shared():
        return [value]
    values = [value] * count()
    dist.all_gather_object(values, value)
    return values


def largest(*numbers: int, timeout: timedelta = STEP_TIMEOUT) -> list[int]:
    """The largest that any process says, for each number; asked after each step."""
    found = torch.tensor(numbers)
    if _shared():
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=_step_group("gloo", timeout))
    return found.tolist()


def total(numbers: Tensor) -> list[float]:
    """The sum over all processes, for each number [N]."""
    found = numbers.to("cpu", copy=True)  # what is given stays as it is
    if _shared():
        dist.all_reduce(found)
    return found.tolist()


def by_first(act: Callable[P, R]) -> Callable[P, R]:
    """A function that only the first process carries out; the others are told what it returned, or what was wrong."""

    @wraps(act)
    def carry_out(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _shared():
            return act(*args, **kwargs)
        answer: list = [None, None]
        if is_first():
            with _alone():
                try:
                    answer[0] = act(*args, **kwargs)
                except InputError as error:
                    answer[1] = error
        dist.broadcast_object_list(answer)
        if answer[1]:
            raise answer[1]
        return answer[0]

    return carry_out


def in_turn(act: Callable[P, R]) -> Callable[P, R]:
    """A function that prepares something on the disk: the first process carries it out first and finds nothing yet.

    Then comes the first of every other machine, in case that has a disk of its own, and then all others. What is wrong
    for one is wrong for all.
    """

    @wraps(act)
    def carry_out(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _shared():
            return act(*args, **kwargs)
        own_turn = 0 if is_first() else 1 if local_rank() == 0 else 2
        for turn in range(3):
            wrong = None
            if turn == own_turn:
                with _alone():
                    try:
                        result = act(*args, **kwargs)
                    except InputError as error:
                        wrong = error
            for error in filter(None, all_of(wrong)):
                raise error
        return result

    return carry_out


def shared_out(tasks: Sequence[T], act: Callable[[T], R]) -> Iterator[R]:
    """What `act` makes of every task, in order, in every process; each process does its share of them.

    Results should lie on the CPU.
    """
    for start in range(0, len(tasks), count()):
        now = tasks[start : start + count()]
        mine = act(now[rank()]) if rank() < len(now) else None
        yield from all_of(mine)[: len(now)]


def num_rounds(num_tasks: int) -> int:
    """How many of so many tasks a process has to do at most."""
    return -(-num_tasks // count())


def own_pieces(size: int, pieces: int) -> list[slice]:
    """This process's share of a global batch of a size, in so many consecutive pieces."""
    parts = count() * pieces
    own = range(rank() * pieces, (rank() + 1) * pieces)
    return [slice(size * k // parts, size * (k + 1) // parts) for k in own]


@cache
def _step_group(backend: str, timeout: timedelta) -> dist.ProcessGroup:
    return dist.new_group(backend=backend, timeout=timeout)


def parallel(network: nn.Module, device: torch.device, timeout: timedelta = STEP_TIMEOUT) -> nn.Module:
    """The network, whose gradients will be the means of all processes'."""
    if count() == 1:
        return network
    group = _step_group("nccl" if device.type == "cuda" else "gloo", timeout)
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, process_group=group, gradient_as_bucket_view=True)


def keep_gradients(network: nn.Module) -> AbstractContextManager:
    """Inside, the gradients of a `parallel` network are added up in each process, and not exchanged."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def is_said_first(message: str) -> bool:
    """Whether no other process has said so."""
    try:
        return _store is None or _store.add(f"said: {message}", 1) == 1
    except RuntimeError:  # with torchrun, the store has gone
        return True


def is_loss_of_another(error: BaseException) -> bool:
    """Whether the error is that another process no longer answers."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
