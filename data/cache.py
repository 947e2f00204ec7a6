"""Prepared data in the user's cache folder: made once, whoever asks first, and never half there."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from data.errors import UserError


def cache_root() -> Path:
    """Where prepared corpora are kept: $MURMURATION_CACHE, else murmuration/ in the user's cache folder."""
    own = os.environ.get("MURMURATION_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "murmuration"


def made_once(folder: Path, last: str, write: Callable[[Path], None]) -> Path:
    """``folder``, filled by ``write`` unless it is there already; several processes may ask at once.

    Args:
      last: the file that ``write`` writes last: where it is, everything is.
      write: fills the folder, which does not exist then.

    Raises:
      UserError: the cache cannot be written.
    """
    if (folder / last).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.parent / f"{folder.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / last).is_file():  # another process may have made it meanwhile
                shutil.rmtree(folder, ignore_errors=True)  # an interrupted attempt
                write(folder)
    except (OSError, RuntimeError) as e:  # array_record reports a full disk as RuntimeError
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"{folder}: cannot write the prepared data ({getattr(e, 'strerror', None) or e}); "
            "free some space or set MURMURATION_CACHE to another folder"
        ) from e
    return folder
