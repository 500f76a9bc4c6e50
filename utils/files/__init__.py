"""Reading and writing files: rank 0 alone does it, and every rank receives the result, or the error.

Not so the data set, which each rank reads itself: see utils/data/load.py.

All other modules import these functions from here. Those that they wrap, in the modules of this package, know of one
process only.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from utils.files import disk, json_file, safetensors_file, torch_file, yaml_file
from utils.process.distributed import on_rank_zero

CACHE = Path("data/cache")  # what can be made again

read_yaml = on_rank_zero(yaml_file.read_yaml)
read_torch_file = on_rank_zero(torch_file.read_torch_file)
read_safetensors = on_rank_zero(safetensors_file.read_safetensors)
read_json = on_rank_zero(json_file.read_json)
read_if_there = on_rank_zero(disk.read_if_there)
write_atomically = on_rank_zero(disk.write_atomically)
append_line = on_rank_zero(disk.append_line)
prepare_folder = on_rank_zero(disk.prepare_folder)
exists = on_rank_zero(os.path.exists)
find_files = on_rank_zero(disk.find_files)
delete_files = on_rank_zero(disk.delete_files)
remove_if_empty = on_rank_zero(disk.remove_if_empty)
sha256 = on_rank_zero(disk.sha256)


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Makes the folder, and keeps other runs from writing there: see `disk.locked`."""
    with ExitStack() as held:
        on_rank_zero(lambda: held.enter_context(disk.locked(folder, wait=wait)))()
        yield
