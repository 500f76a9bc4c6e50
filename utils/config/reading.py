"""Reading a configuration: untrusted YAML, with limits, and error messages for values that do not fit the schema."""

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from utils.config.schema import NETWORKS, Config
from utils.system.distributed import on_rank_zero
from utils.system.errors import InputError
from utils.system.files import read_at_most

MOST_BYTES = 2**18
# Values; aliases count each time, against "billion laughs". (A schedule may list 10,000 betas.)
MOST_NODES, DEEPEST = 12_000, 16


class _Loader(yaml.SafeLoader):
    """A SafeLoader with limits that reads 1e-4 and 010 as decimal numbers, and refuses duplicate keys."""

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

    def construct_decimal(self, node: yaml.ScalarNode) -> int | float | str:
        """A decimal number; otherwise the text, which no key takes. (In YAML 1.1, 010 is 8, and 1:30 is 90.)"""
        text = self.construct_scalar(node)
        if re.fullmatch(r"[-+]?\d+", text):
            return int(text)
        return text if re.search("[:_xb]", text) else self.construct_yaml_float(node)


for _tag, _form in (("int", r"[-+]?\d+"), ("float", r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^{_form}$"), list("-+0123456789"))
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_decimal)


def _keys_at(location: tuple[int | str, ...], section: Any) -> list[str]:
    """The valid keys at a location of a section."""
    for name in location[:-1]:
        if name in NETWORKS:
            section = NETWORKS[name]
        else:
            annotation = section.model_fields[name].annotation
            section = next(iter(get_args(annotation)), annotation)  # of an optional section
    return list(section.model_fields)


def explain(error: ValidationError, section: type[BaseModel] = Config) -> tuple[str, str]:
    """The name of the first wrong key, and what is wrong with it; `section` is the validated model."""
    errors = error.errors()
    # A misspelt key is also a missing one; the misspelling explains more.
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    location = first["loc"]
    parts = [str(part) for part in location if part not in NETWORKS]  # pydantic adds these; they are not in the file
    name = ".".join(part for part in parts if part != "[key]" and "[" not in part)[:200]
    if first["type"] == "union_tag_invalid":
        return f"{name}.type", f"should be {' or '.join(NETWORKS)}, not {_short(first['input']['type'])}"
    if first["type"] == "union_tag_not_found":
        return name, f"should be keys and their values, not {_short(first['input'])}"
    if first["type"] == "extra_forbidden":
        keys = _keys_at(location, section)
        close = difflib.get_close_matches(str(location[-1]), keys, n=1)
        return name, "unknown key" + (
            f", did you mean {close[0]}?" if close else f"; the keys here are {', '.join(keys)}"
        )
    if first["type"] == "missing":
        return name, "missing; it has no default"
    if first["type"] == "value_error":
        text = str(first["ctx"]["error"])
        if name and not text.startswith(f"{name}."):  # errors of several keys of a section name their key themselves
            return name, text
        name, _, problem = text.partition(": ")
        return name, problem
    message = first["msg"].replace("Input should be", "should be")
    return name, f"{message}, not {_short(first['input'])}"


def _short(value: object) -> str:
    try:
        return f"{reprlib.repr(value):.60}"
    except ValueError:
        return "a number of thousands of digits"


@on_rank_zero
def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads and validates a configuration; every rank gets that of rank 0, including its flags.

    `overrides` are the values of command-line flags by dotted key, such as {"training.batch_size": 32}. Raises
    InputError, which names the file (or the flag), the key, what is wrong and what would be right.
    """
    path, overrides = Path(path), overrides or {}
    text = read_at_most(path, MOST_BYTES)
    try:
        content = yaml.load(text.decode(), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except Exception as error:  # any failure of the parser means a broken file
        raise InputError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if content is None:
        raise InputError(f"{path}: the file is empty; start from a copy of configs/ddpm_32x32_v_continuous.yaml")
    if not isinstance(content, dict):
        raise InputError(f"{path}: should be sections of `key: value`, not a {type(content).__name__}")
    content = {key: value for key, value in content.items() if value is not None}  # an empty section: its defaults
    for key, value in overrides.items():
        section, _, name = key.rpartition(".")
        if not section:
            content[name] = value
        elif isinstance(content.setdefault(section, {}), dict):
            content[section] = content[section] | {name: value}
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        key, problem = explain(error)
        flag = next((name for name in overrides if key == name or key.startswith(f"{name}.")), None)
        where = f"--{flag.split('.')[-1]}" if flag else f"{path}: {key}" if key else f"{path}"
        raise InputError(f"{where}: {problem}") from error


def flatten(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as (dotted name, value) pairs."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two nested mappings, one phrase for each name."""
    before, now = dict(flatten(before)), dict(flatten(now))
    return [
        f"{name} is {before.get(name)!s:.200}, not {now.get(name)!s:.200}"
        for name in before | now
        if before.get(name) != now.get(name)
    ]
