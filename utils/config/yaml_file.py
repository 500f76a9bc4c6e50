"""Reading untrusted YAML files: plain data only, with limits on size and depth."""

import re
from pathlib import Path
from typing import Any

import yaml

from utils.system.errors import InputError
from utils.system.files import require_regular_file

MOST_BYTES = 2**18
# Values; aliases count each time, against "billion laughs". (A schedule may list 10,000 betas.)
MOST_NODES, DEEPEST = 12_000, 16


class _Loader(yaml.SafeLoader):
    """A SafeLoader with limits that reads 1e-4 as a number, and refuses duplicate keys."""

    def __init__(self, text: str):
        super().__init__(text)
        self.depth, self.sizes = 0, dict[int, int]()

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        """Composes a value; limited in depth, and in size including the targets of its aliases."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if id(node) not in self.sizes:
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [part for pair in parts for part in (pair if isinstance(pair, tuple) else [pair])]
            if any(id(part) not in self.sizes for part in parts):
                raise yaml.composer.ComposerError(None, None, "a value that contains itself")
            self.sizes[id(node)] = 1 + sum(self.sizes[id(part)] for part in parts)
        if self.sizes[id(node)] > MOST_NODES:
            raise yaml.composer.ComposerError(None, None, f"more than {MOST_NODES} values")
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"key {key.value!r} given twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                seen.add(key.value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> Any:
    """Reads a YAML file, without executing anything. Raises InputError if it is missing, too large, or not YAML."""
    require_regular_file(path)
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > MOST_BYTES:
        raise InputError(f"{path}: larger than {MOST_BYTES // 2**10} KiB, so not a configuration")
    try:
        return yaml.load(text.decode(), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except Exception as error:  # any failure of the parser means a broken file
        raise InputError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
