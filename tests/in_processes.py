"""What several processes agree on; test_distributed.py runs this under torchrun, in three of them."""

import os
from itertools import chain
from pathlib import Path

import torch

from utils import distributed
from utils.distributed import by_first, in_turn
from utils.errors import InputError


def raised(act) -> str | None:
    try:
        act()
    except InputError as error:
        return str(error)
    return None


@by_first
def leave_a_trace(name: str) -> str:
    with open(name, "a") as file:
        file.write(f"{distributed.rank()}\n")
    return Path(name).read_text()


@by_first
def refuse() -> None:
    raise InputError(f"refused by {distributed.rank()}")


@by_first
def nested() -> str:
    return leave_a_trace("nested")  # the others are not there to be told


@in_turn
def prepare() -> tuple[str, bool]:
    there = Path("prepared").exists()
    return leave_a_trace("prepared") if not there else "", there


@in_turn
def fail_in_the_last() -> None:
    if distributed.rank() == distributed.count() - 1:
        raise InputError("no room here")


def main() -> None:
    with distributed.joined():
        rank, count = distributed.rank(), distributed.count()
        assert count == 3 and rank == int(os.environ["RANK"])
        assert distributed.is_first() == (rank == 0)
        assert distributed.all_of(("a", rank)) == [("a", 0), ("a", 1), ("a", 2)]
        assert distributed.largest(rank, 5 - rank) == [2, 5]
        assert distributed.total(torch.tensor([1.0, float(rank)])) == [3.0, 3.0]
        assert leave_a_trace("first") == "0\n" and nested() == "0\n"
        assert raised(refuse) == "refused by 0"
        assert distributed.all_of(prepare()) == [("0\n", False), ("", True), ("", True)]
        assert raised(fail_in_the_last) == "no room here"
        did = []
        assert list(distributed.shared_out(range(5), lambda task: did.append(task) or task**2)) == [0, 1, 4, 9, 16]
        assert distributed.all_of(did) == [[0, 3], [1, 4], [2]] and distributed.num_rounds(5) == 2
        pieces = distributed.all_of(distributed.own_pieces(16, 2))
        found = [list(range(16)[piece]) for of_one in pieces for piece in of_one]
        assert list(chain(*found)) == list(range(16)) and {len(one) for one in found} == {2, 3}
        assert sum(distributed.all_of(distributed.is_said_first("hello"))) == 1
        print(f"all is well in {rank}")


if __name__ == "__main__":
    main()
