"""Seals on folders of files: sha256 of every file, written last, checked before anything is read back.

Orbax restores a file with flipped bits without an error, and counts an empty folder as a checkpoint.  A folder without
a seal is one whose writing never ended; a seal that does not match names the file that changed.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SEAL = "checksums.json"


def seal(folder: Path, note: dict[str, Any] | None = None) -> None:
    """Writes the checksums of all files below ``folder``, and a JSON ``note``, atomically into ``folder``."""
    body = {"files": _digests(folder, _files(folder)), "note": note or {}}
    write_atomically(folder / SEAL, _encode(body))


def annotate(folder: Path, note: dict[str, Any]) -> None:
    """Replaces the note of a sealed folder; the checksums stay as they are."""
    write_atomically(folder / SEAL, _encode({"files": _read(folder)["files"], "note": note}))


def note(folder: Path) -> dict[str, Any]:
    """The note that ``seal`` stored."""
    return _read(folder)["note"]


def sealed(folder: Path) -> bool:
    """Whether writing ``folder`` came to its end; a look, not a check of the contents."""
    return (folder / SEAL).is_file()


def problem(folder: Path) -> str | None:
    """What is wrong with ``folder``, or None when every file is as it was sealed."""
    if not folder.is_dir():
        return "no such folder"
    if not any(folder.iterdir()):
        return "the folder is empty"
    if not sealed(folder):
        return f"{SEAL} is missing, so writing it never ended"
    try:
        expected = _read(folder)["files"]
    except ValueError as error:
        return str(error)
    there = _files(folder)
    for name in sorted(expected):
        if name not in there:
            return f"{name} is missing"
        size = (folder / name).stat().st_size
        if size != expected[name]["size"]:
            return f"{name} has {size} bytes and not {expected[name]['size']}"
    found = _digests(folder, sorted(expected))
    changed = [name for name in sorted(expected) if found[name] != expected[name]]
    return f"the contents of {changed[0]} have changed (sha256 differs)" if changed else None


def write_atomically(path: Path, text: str) -> None:
    """The file holds the old text or the new one, whatever happens meanwhile."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(scratch, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _files(folder: Path) -> list[str]:
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in names if not name.startswith(SEAL))


def _digests(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    def one(name: str) -> dict[str, Any]:
        with open(folder / name, "rb") as file:  # file_digest lets go of the interpreter lock
            return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": os.fstat(file.fileno()).st_size}

    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def _encode(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, indent=1)
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), **body}, sort_keys=True, indent=1)


def _read(folder: Path) -> dict[str, Any]:
    try:
        body = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        own = body.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{SEAL} is not readable") from None
    if hashlib.sha256(json.dumps(body, sort_keys=True, indent=1).encode()).hexdigest() != own:
        raise ValueError(f"{SEAL} itself has changed")
    return body
