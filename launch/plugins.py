"""Functions that a user names on the command line, as ``module:function``."""

import importlib
from collections.abc import Callable
from typing import Any

from data.errors import UserError


def plugin(name: str, flag: str) -> Callable[..., Any]:
    """The function ``module:function``; the module is found as Python finds it.

    Raises:
      UserError: not of this form, no such module (or one that cannot be imported), or nothing callable of that name.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise UserError(f"--{flag}={name}: expected module:function")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise UserError(f"--{flag}={name}: {error}") from error
    if not callable(found):
        raise UserError(f"--{flag}={name}: the module {module} has no function {function}")
    return found
