"""results.json: the results of evaluate.py; finished rows are read from it."""

import json
from pathlib import Path
from typing import Any

from utils.system.errors import InputError
from utils.system.files import read_if_there, write_atomically

FORMAT_VERSION = 2


class Results:
    """The entries of a results.json: flat dictionaries of what was evaluated (the key) and of its results."""

    def __init__(self, path: Path):
        """Reads the file if it exists. Raises InputError if it is something else, or of another format version."""
        self.path = path
        self.entries = _read_entries(path)

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The first entry that contains all of a key."""
        for entry in self.entries:
            if all(name in entry and entry[name] == value for name, value in key.items()):
                return entry
        return None

    def add(self, entry: dict[str, Any]) -> None:
        """Adds an entry, and writes the file."""
        self.entries.append(entry)
        text = json.dumps({"format_version": FORMAT_VERSION, "evaluations": self.entries}, indent=1)
        write_atomically(self.path, lambda file: file.write(text.encode()))


def _read_entries(path: Path) -> list[dict[str, Any]]:
    text = read_if_there(path)
    if text is None:
        return []
    try:
        content = json.loads(text)
        version, entries = content["format_version"], content["evaluations"]
        whole = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: damaged, or not results of evaluate.py; delete or rename it") from error
    if version != FORMAT_VERSION or not whole:
        raise InputError(f"{path}: not results of this version of evaluate.py; delete or rename it")
    return entries
