"""The exception for what the user can correct."""


class InputError(Exception):
    """Something given to a script is wrong. The message is one line: what, what is wrong, what would be right.

    The scripts print it without a traceback and exit with code 2; any other exception is a bug and keeps its own.
    """
