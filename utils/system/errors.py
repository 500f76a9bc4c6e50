"""The exception for errors that the user can correct, and texts for its messages."""

import unicodedata
from collections.abc import Sequence


class InputError(Exception):
    """A wrong input: the scripts print its message, one line (which input, what is wrong, what would be right)."""


def first_of(texts: Sequence[str], most: int = 20, separator: str = ", ") -> str:
    """The first of these texts as a list, with an ellipsis if there are more."""
    return separator.join([*texts[:most], *["..."] * (len(texts) > most)])


def counted(count: int, thing: str, plural: str = "s") -> str:
    """A number of things: 1 class, 2 classes."""
    return f"{count} {thing}{plural if count != 1 else ''}"


def printable(name: str) -> str:
    """A file name for printing and saving: control characters and invalid bytes as \\x1b, accents composed."""
    text = unicodedata.normalize("NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
    return "".join(repr(each)[1:-1] if unicodedata.category(each) == "Cc" else each for each in text)
