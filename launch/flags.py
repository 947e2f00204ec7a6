"""What the entry points share: how flags are read and how a run ends.

Bad input, on the command line or later, is one line ``error: …`` on stderr and exit code 2.
"""

import errno
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from data.errors import UserError
from train.preempt import INTERRUPTED, USER_ERROR

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}  # not our bugs
PACKAGES = ("configs", "models", "train", "sampling", "data", "launch")


def define_config() -> flags.FlagHolder[Any]:
    """The flag ``--config=configs/FAMILY.py:VARIANT`` with overrides ``--config.section.key=value``."""
    return config_flags.DEFINE_config_file(
        "config", None, "configs/FAMILY.py:VARIANT; override any key with --config.section.key=value", lock_config=True
    )


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs an entry point; never returns.

    Args:
      main: gets the arguments that are not flags; returns the exit code, None = 0.
    """

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # libraries tell their life story at INFO
        sys.unraisablehook = _hush(sys.unraisablehook)
        try:
            check_packages()
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --")
            code = main(argv[1:]) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            code = USER_ERROR
        except OSError as error:
            if error.errno not in ENVIRONMENT:
                raise
            print(f"error: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr, flush=True)
            code = USER_ERROR
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            code = INTERRUPTED
        sys.exit(code)

    app.run(guarded, flags_parser=parse)


def parse(argv: Sequence[str], known: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the command line; on a mistake prints one line and exits with code 2."""
    try:
        rest = known([argv[0], *map(_find_config, argv[1:])])
        if "config" in known:
            _ = getattr(known["config"].value, "keys", None)  # a file that could not be read complains only now
        return rest
    except SystemExit:
        raise
    except Exception as error:  # config_flags raises whatever the config file or the override raised
        print(f"error: {_one_line(error)}; see --help", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)


def check_packages() -> None:
    """All six packages come from this checkout.

    Raises:
      UserError: another ``train`` or ``data`` is in the way.
    """
    for name in PACKAGES:
        module = importlib.import_module(name)
        places = [Path(p).resolve() for p in getattr(module, "__path__", [])]
        if ROOT / name not in places:
            where = places[0] if places else module.__file__
            raise UserError(
                f"`{name}` is imported from {where} and not from {ROOT}; run from the checkout, or rename it"
            )


def _hush(show: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """When a checkpoint cannot be written, tensorstore's threads report each further array to a loop that is gone."""
    return lambda unraisable: None if str(unraisable.exc_value) == "Event loop is closed" else show(unraisable)


def _one_line(error: BaseException) -> str:
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0] if error.args else error)
    if "Traceback" in text:  # of the config file; its last line is the message
        text = text.strip().splitlines()[-1]
    text = " ".join(text.split())
    return f"unknown key {text}" if isinstance(error, KeyError | AttributeError) else text


def _find_config(argument: str) -> str:
    """``--config=configs/x.py`` is found from any working directory."""
    flag, equals, value = argument.partition("=")
    path = value.partition(":")[0]
    if flag not in ("--config", "-config") or not equals or Path(path).is_file():
        return argument
    if not (ROOT / path).is_file():
        raise UserError(f"--config: there is no file {path!r}")
    return f"{flag}={ROOT / value}"
