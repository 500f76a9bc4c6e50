"""Files as an accident or an enemy would leave them: mutated checkpoints, training states and configurations."""

import copy
import io
import random
import zipfile
from collections.abc import Callable
from typing import Any

import torch

HOSTILE_NUMBERS = (0, -1, 1, 3, 2**31, 2**63, 10**400, -(10**30), 1e308, float("nan"), float("inf"), 0.5, True, None)
HOSTILE_VALUES = (
    *HOSTILE_NUMBERS,
    *("", "x", "../../x", "\0", "\x1b[31m", "\ud800", "a" * 100_000),
    *([], {}, (), [[[[[[[[[[]]]]]]]]]], {"a": {"b": {"c": {}}}}, b"bytes", [0] * 1000),
    *(torch.zeros(1), torch.zeros(()).expand(10**6, 10**6), torch.zeros(2, dtype=torch.int8), torch.eye(2).to_sparse()),
)
PICKLE_OPCODES = b"(.0123abcdegijlopqrstuBCGIJKLMNPQRSTUVX)]}\x80\x81\x85\x86\x87\x88\x89\x8a\x8b"
YAML_PIECES = (
    *(
        "[",
        "]",
        "{",
        "}",
        ":",
        "- ",
        "&a ",
        "*a",
        "<<: *a",
        "!!python/object/apply:os.system [touch executed]",
        "!!int x",
    ),
    *(
        "!!float",
        "!!bool x",
        "!!timestamp x",
        "!!binary x",
        "!!set {a}",
        "!!omap [a]",
        "? [a]\n: b",
        "\t",
        "\0",
        "\x1b[31m",
    ),
    *(
        "1" * 5000,
        "0x" + "f" * 5000,
        "1:" * 2000 + "1",
        "1e999",
        "-1",
        "0",
        ".nan",
        ".inf",
        "2001-99-99",
        "null",
        "true",
        "~",
    ),
    *(
        "'",
        '"',
        "|\n",
        ">\n",
        "%YAML 9.9\n",
        "---\n",
        "...\n",
        "# ",
        "é",
        "\ufeff",
        "a" * 5000,
        "[" * 3000,
        "{a: " * 300,
    ),
    "&b [&c [1,1,1,1,1,1,1,1,1,1], *c, *c, *c, *c, *c, *c, *c, *c, *c]",
)


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """A few bytes other, gone or too many."""
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        at, length = draw.randrange(len(content) + 1), draw.choice((1, 1, 4, 100, 5000))
        kind = draw.randrange(6)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            content[at : at + length] = draw.randbytes(min(length, len(content) - at))
        elif kind == 2:
            del content[at : at + length]
        elif kind == 3:
            content[at:at] = draw.randbytes(length)
        elif kind == 4:
            content[at : at + length] = bytes(min(length, len(content) - at))
        elif draw.random() < 0.2:
            del content[at:]
    return bytes(content)


def mutate_pickle(content: bytes, draw: random.Random) -> bytes:
    """The archive whole and with the right checksums; what is pickled in it, other."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    pickled = bytearray(entries[name])
    for _ in range(draw.choice((1, 2, 5))):
        at = draw.randrange(len(pickled))
        pickled[at] = draw.choice(PICKLE_OPCODES) if draw.random() < 0.5 else draw.randrange(256)
        if draw.random() < 0.2:
            pickled[at:at] = draw.choices(PICKLE_OPCODES, k=draw.choice((1, 5, 50)))
    if draw.random() < 0.1:
        pickled = bytearray(mutate_bytes(bytes(pickled), draw))
    entries[name] = bytes(pickled)
    if draw.random() < 0.1:
        del entries[draw.choice(list(entries))]
    buffer = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if draw.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)
    return buffer.getvalue()


def mutate_values(content: bytes, draw: random.Random) -> bytes:
    """What is saved is saved as it should be, but some of it is not what it should be."""
    values = torch.load(io.BytesIO(content), weights_only=True)
    for _ in range(draw.choice((1, 1, 3))):
        place: Any = values
        while True:
            key = draw.choice(list(place)) if place else "new"
            if not isinstance(place[key] if place else None, dict) or not place[key] or draw.random() < 0.1:
                break
            place = place[key]
        kind = draw.randrange(4)
        if kind == 0 and key in place:
            del place[key]
        elif kind == 1:
            place[draw.choice(("new", 5, "step", "\x1b"))] = copy.deepcopy(draw.choice(HOSTILE_VALUES))
        else:
            place[key] = copy.deepcopy(draw.choice(HOSTILE_VALUES))
        if not values:
            break
    buffer = io.BytesIO()
    try:
        torch.save(values, buffer)
    except (UnicodeError, ValueError):  # what cannot be written need not be read
        return content
    return buffer.getvalue()


def mutate_yaml(content: bytes, draw: random.Random) -> bytes:
    """Lines and pieces gone, doubled, elsewhere, or replaced by what YAML makes something strange of."""
    text = content.decode()
    for _ in range(draw.choice((1, 1, 2, 5))):
        lines, kind = text.split("\n"), draw.randrange(6)
        line = draw.randrange(len(lines))
        if kind == 0:
            del lines[line]
        elif kind == 1:
            lines.insert(draw.randrange(len(lines) + 1), lines[line])
        elif kind in (2, 3) and ":" in lines[line]:
            lines[line] = lines[line].split(":")[0] + ": " + draw.choice(YAML_PIECES)
        elif kind == 4:
            at = draw.randrange(len(lines[line]) + 1)
            lines[line] = lines[line][:at] + draw.choice(YAML_PIECES) + lines[line][at:]
        else:
            return mutate_bytes("\n".join(lines).encode(errors="replace"), draw)
        text = "\n".join(lines) or "a"
    return text.encode(errors="surrogatepass")


TORCH_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (mutate_bytes, mutate_pickle, mutate_values)


def mutate(kind: str, content: bytes, draw: random.Random) -> bytes:
    """A mutation of a `checkpoint`, a `state` or a `config`."""
    return (mutate_yaml if kind == "config" else draw.choice(TORCH_MUTATIONS))(content, draw)
