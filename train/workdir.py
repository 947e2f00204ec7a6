"""The run's folder: ``config.json``, ``assets/``, ``checkpoints/<step>/``, ``metrics.jsonl``, ``samples/``.

A run that goes on must compute what it was started to compute: its config and its assets are compared with those on
disk before anything is replaced.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from data.errors import UserError
from train import integrity, trees

CONFIG = "config.json"
ASSETS = "assets"
CHECKPOINTS = "checkpoints"
KEPT = "kept"  # `type` of a section that is taken from --init_from

# Sections that say how a run is watched, kept and spread over devices, and not what it computes.
MAY_CHANGE = ("log", "evaluation", "sample", "checkpoint", "profile", "mesh", "max_skipped", "compile_cache")


def claim(workdir: Path) -> None:
    """Makes the folder.

    Raises:
      UserError: it cannot be made or written into.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        writable = os.access(workdir, os.W_OK | os.X_OK)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made: {error.strerror or error}") from None
    if not writable:
        raise UserError(f"--workdir={workdir} cannot be written into")


def read_config(workdir: str | Path) -> dict[str, Any]:
    """The config of a run folder or converted checkpoint, as plain JSON values.

    Raises:
      UserError: there is none, or it is not JSON.
    """
    path = Path(workdir) / CONFIG
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{workdir} is not a run folder: it has no {CONFIG}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def resolve(config: Mapping[str, Any], origin: str | Path | None) -> dict[str, Any]:
    """The config with sections of ``type`` "kept" taken from what the run begins from, or goes on with.

    The section's other keys, where they are not None, override those of ``origin``.

    Args:
      config: plain JSON values.
      origin: run folder or converted checkpoint.

    Raises:
      UserError: there is no origin, or its config has no such section.
    """
    out = dict(config)
    for name, section in config.items():
        if not isinstance(section, Mapping) or section.get("type") != KEPT:
            continue
        if origin is None:
            raise UserError(f"config.{name}.type is {KEPT!r}: it is taken from what --init_from=DIR names; give that")
        theirs = read_config(origin)
        if name not in theirs:
            raise UserError(f"{Path(origin) / CONFIG} has no section {name!r}, which config.{name}.type={KEPT!r} needs")
        own = {key: value for key, value in section.items() if key != "type" and value is not None}
        out[name] = {**theirs[name], **own}
    return out


def write_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Process 0 replaces ``config.json``, atomically."""
    if jax.process_index() == 0:
        integrity.write_atomically(workdir / CONFIG, json.dumps(config, indent=1) + "\n")


def check_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Compares with the ``config.json`` that is there, if it is.

    Raises:
      UserError: a key that changes what the run computes differs.
    """
    changed = drift(read_config(workdir), config) if (workdir / CONFIG).exists() else []
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{workdir} was started with another config ({'; '.join(changed[:5])}{more}); use another workdir, "
            "or --allow_config_change to go on with the new values"
        )


def drift(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences between two configs that change what a run computes, as text."""
    before, after = trees.flatten(old), trees.flatten(new)
    return [
        f"{path.replace('/', '.')} was {before.get(path, 'not set')} and is {after.get(path, 'not set')}"
        for path in sorted({*before, *after})
        if path.split("/")[0] not in MAY_CHANGE and before.get(path) != after.get(path)
    ]


def write_assets(workdir: Path, write: Callable[[str], None], check: bool) -> str:
    """What the model cannot be used without (vocabulary, signal settings), written by process 0.

    Args:
      write: fills a folder.
      check: the assets must come out as they are already.

    Returns:
      The folder.

    Raises:
      UserError: with ``check``, if they come out differently: the data has changed under the run.
    """
    folder, new = workdir / ASSETS, workdir / f"{ASSETS}.new"
    if jax.process_index() == 0:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        write(str(new))
        changed = differences(folder, new)
        if check and folder.is_dir() and changed:
            shutil.rmtree(new)
            raise UserError(
                f"the data is not what {workdir} was started with ({', '.join(changed)} would change); "
                "restore the data, use another workdir, or --allow_config_change"
            )
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("assets written")
    return str(folder)


def differences(a: Path, b: Path) -> list[str]:
    """Names of the files that two folders do not have alike."""
    names = {p.relative_to(folder).as_posix() for folder in (a, b) for p in folder.rglob("*") if p.is_file()}
    both = [n for n in names if (a / n).is_file() and (b / n).is_file()]
    return sorted(names - {n for n in both if (a / n).read_bytes() == (b / n).read_bytes()})
