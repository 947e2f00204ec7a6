"""A converted checkpoint on disk: a run folder without history, which appears complete or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data.errors import UserError
from train.checkpoint import CheckpointStore
from train.workdir import ASSETS, CONFIG


def check_new(out: str | Path) -> Path:
    """The folder to be made.

    Raises:
      UserError: there is something already.
    """
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} exists already; name a new folder")
    return out


def write_folder(
    out: Path,
    config: Mapping[str, Any],
    write_assets: Callable[[Path], None],
    variables: Mapping[str, Any],
    step: int,
) -> None:
    """Writes ``config.json``, ``assets/`` and ``checkpoints/<step>/``.

    Args:
      out: from ``check_new``.
      config: as JSON has it.
      write_assets: fills a folder.
      variables: ``{"params", "stats"}`` of arrays.
      step: of the checkpoint.
    """
    scratch = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        (scratch / ASSETS).mkdir(parents=True)
        (scratch / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        write_assets(scratch / ASSETS)
        store = CheckpointStore(scratch / "checkpoints")
        try:
            store.save(step, {"params": variables["params"], "stats": variables["stats"]}, {"evaluate_with": "raw"})
        finally:
            store.close()
        if out.is_dir():
            out.rmdir()  # empty, as check_new has seen
        scratch.rename(out)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
