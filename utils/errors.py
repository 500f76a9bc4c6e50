"""The exception for what the user can correct, and lists in its messages."""

from collections.abc import Sequence


class InputError(Exception):
    """Something given to a script is wrong. The message is one line: what, what is wrong, what would be right.

    The scripts print it without a traceback and exit with code 2; any other exception is a bug and keeps its own.
    """


def first_of(texts: Sequence[str], most: int = 20, separator: str = ", ") -> str:
    """A list for a message: the first of these texts, and three dots where there are more."""
    return separator.join([*texts[:most], *["..."] * (len(texts) > most)])


def counted(count: int, thing: str, plural: str = "s") -> str:
    """A number of things, for a message: 1 class, 2 classes."""
    return f"{count} {thing}{plural if count != 1 else ''}"
