"""Reading untrusted JSON files."""

import json
from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.files.disk import require_regular_file

MOST_BYTES = 2**20


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds a mapping.

    Raises:
        InputError: there is no such file, it is too large, or no such JSON.
    """
    require_regular_file(path)
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise InputError(f"{path}: larger than {MOST_BYTES // 2**10} KiB")
        content = json.loads(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file: {error!s:.200}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: should be keys and values, not {type(content).__name__}")
    return content
