"""What several processes agree on; test_distributed.py runs this under torchrun, in three of them."""

import os
from itertools import chain
from pathlib import Path

import torch
from conftest import TINY
from tqdm import tqdm

from utils.config.reading import load_config
from utils.system import distributed
from utils.system.distributed import on_rank_zero, rank_zero_first
from utils.system.errors import InputError


def raised(act) -> str | None:
    try:
        act()
    except InputError as error:
        return str(error)
    return None


@on_rank_zero
def leave_a_trace(name: str) -> str:
    with open(name, "a") as file:
        file.write(f"{distributed.rank()}\n")
    return Path(name).read_text()


@on_rank_zero
def refuse() -> None:
    raise InputError(f"refused by {distributed.rank()}")


@on_rank_zero
def nested() -> str:
    return leave_a_trace("nested")  # the others are not there to be told


@rank_zero_first
def prepare() -> tuple[str, bool]:
    there = Path("prepared").exists()
    return leave_a_trace("prepared") if not there else "", there


@rank_zero_first
def fail_in_the_last() -> None:
    if distributed.rank() == distributed.world_size() - 1:
        raise InputError("no room here")


def main() -> None:
    distributed.connect()
    rank, count = distributed.rank(), distributed.world_size()
    assert count == 3 and rank == int(os.environ["RANK"])
    assert distributed.is_rank_zero() == (rank == 0)
    assert distributed.all_gather(("a", rank)) == [("a", 0), ("a", 1), ("a", 2)]
    assert distributed.all_reduce_max(rank, 5 - rank, timeout=distributed.STEP_TIMEOUT) == [2, 5]
    assert distributed.all_reduce_sum(torch.tensor([1.0, float(rank)])) == [3.0, 3.0]
    assert leave_a_trace("first") == "0\n" and nested() == "0\n"
    assert raised(refuse) == "refused by 0"
    assert distributed.all_gather(prepare()) == [("0\n", False), ("", True), ("", True)]
    assert raised(fail_in_the_last) == "no room here"
    did = []
    assert list(distributed.distributed_map(lambda task: did.append(task) or task**2, range(5))) == [0, 1, 4, 9, 16]
    assert distributed.all_gather(did) == [[0, 3], [1, 4], [2]] and distributed.tasks_per_rank(range(5)) == 2
    pieces = distributed.all_gather(distributed.micro_batches(16, 2))
    found = [list(range(16)[piece]) for of_one in pieces for piece in of_one]
    assert list(chain(*found)) == list(range(16)) and {len(one) for one in found} == {2, 3}
    assert sum(distributed.all_gather(distributed.is_first_to_print("hello"))) == 1
    Path("tiny.yaml").write_text(TINY % "data") if rank == 0 else None
    config = load_config("tiny.yaml", {"training.batch_size": 8 + rank})
    assert config.training.batch_size == 8  # a flag that another rank was given alone does not count
    assert tqdm(()).disable == (rank > 0)
    print(f"all is well in {rank}")
    distributed.disconnect()


if __name__ == "__main__":
    main()
