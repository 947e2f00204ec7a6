"""The one exception that means "your input, not our bug"."""


class UserError(ValueError):
    """Bad input from a person: a file, a flag, a config key, a folder.

    The message is one sentence or two that name the file, key or value, what was expected and what to do.  Entry points
    in ``launch`` print it as ``error: …`` and exit with code 2; nothing else catches it.
    """
