"""A folder or manifest of speech -> utterances, with every unusable entry named.

A folder has the LJSpeech layout: ``metadata.csv`` with lines ``id|text`` or ``id|text|normalised text`` and the sound
in ``wavs/<id>.wav`` (or .flac, .ogg, .opus).  A manifest is a text file of ``audio|text`` lines, paths relative to it.
Either may start with a header line that names its columns: ``id`` or ``audio``, ``text``, and optionally
``normalised``, ``speaker``, ``split`` (``train`` or ``eval``).  Instead of the column a file ``eval.txt`` may list the
held-out ids.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from data.audio import AUDIO_SUFFIXES
from data.errors import UserError
from data.keyed import uniform
from data.problems import Problems

CORPUS = Path(__file__).resolve().parent / "corpus"  # the shipped one

_ALIASES = {"audio": "id", "audio_file": "id", "normalized": "normalised"}
_COLUMNS = ("id", "text", "normalised", "speaker", "split")


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One clip and what is said in it.

    Attributes:
      id: its name, unique in the source.
      audio: the sound file.
      text: white space collapsed, never empty.
      speaker: "" where the source does not say.
      split: "train" or "eval", "" where the source leaves it to ``split_by_text``.
    """

    id: str
    audio: Path
    text: str
    speaker: str = ""
    split: str = ""


def read_source(source: str | os.PathLike[str]) -> tuple[list[Utterance], Problems]:
    """Reads the table of a speech folder or manifest; sound files are looked up but not opened.

    Args:
      source: a folder, a manifest file, or "" for the shipped corpus.

    Returns:
      The usable utterances in file order, and what is wrong with the others.

    Raises:
      UserError: there is no such table, or its columns cannot be told.
    """
    table = Path(source) if str(source) else CORPUS
    if table.is_dir():
        table = table / "metadata.csv"
    if not table.is_file():
        raise UserError(
            f"{table}: not found; expected a folder with metadata.csv (lines `id|text`) and wavs/, "
            "or a manifest file of `audio|text` lines"
        )
    lines = table.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if b"\x00" in lines[0]:
        raise UserError(f"{table}: not UTF-8 text (UTF-16 or binary?); save it as UTF-8")
    columns, first = _header(lines[0], table)
    held_out = _held_out(table.parent)

    problems, utterances, seen = Problems(), [], set()
    for number, raw in enumerate(lines[first:], first + 1):
        if not raw.strip():
            continue
        utterance = _parse(raw, columns, table, number, problems)
        if utterance is None:
            continue
        if utterance.id in seen:
            problems.add("second entry of the same id", f"{utterance.id} at line {number}")
            continue
        seen.add(utterance.id)
        if held_out is not None:
            utterance = dataclasses.replace(utterance, split="eval" if utterance.id in held_out else "train")
        utterances.append(utterance)
    if held_out is not None and (strangers := sorted(held_out - seen)) and not problems:
        raise UserError(f"{table.parent / 'eval.txt'}: {strangers[0]!r} is not an id of {table.name}")
    return utterances, problems


def _header(line: bytes, table: Path) -> tuple[list[str] | None, int]:
    """Column names if the first line gives them, and the index of the first line of data."""
    cells = [_ALIASES.get(c, c) for c in line.decode("utf-8", "replace").strip().lower().split("|")]
    if cells[0] != "id" or "text" not in cells:
        return None, 0
    unknown = [c for c in cells if c not in _COLUMNS]
    if unknown or len(set(cells)) < len(cells):
        raise UserError(f"{table}: header {'|'.join(cells)!r}; the columns may be {', '.join(_COLUMNS)}, each once")
    return cells, 1


def _held_out(folder: Path) -> set[str] | None:
    path = folder / "eval.txt"
    if not path.is_file():
        return None
    return set(path.read_text(encoding="utf-8").split("\n")) - {""}


def _parse(raw: bytes, columns: list[str] | None, table: Path, number: int, problems: Problems) -> Utterance | None:
    """One line -> one utterance, or None and a note in ``problems``."""
    where = f"line {number}"
    try:
        text = raw.decode("utf-8").rstrip("\r")
    except UnicodeDecodeError:
        problems.add("not UTF-8", where)
        return None
    if "\ufffd" in text:  # some other program already failed to decode it
        problems.add("not UTF-8", f"{where}, which holds the replacement character")
        return None
    cells = text.split("|")
    names = columns or _COLUMNS[:3][: len(cells)]
    if len(cells) != len(names) or len(cells) < 2:
        problems.add("malformed", f"{where}, which has {len(cells)} fields")
        return None
    row = {name: " ".join(cell.split()) for name, cell in zip(names, cells, strict=True)}
    name, spoken = row["id"], row.get("normalised") or row["text"]
    split = row.get("split", "")
    if split not in ("", "train", "eval"):
        raise UserError(f"{table}, line {number}: split is {split!r}, expected 'train' or 'eval'")
    if not spoken:
        problems.add("empty text", name or where)
        return None
    audio = _find_audio(table.parent, name)
    if audio is None:
        problems.add("missing audio", name or where)
        return None
    name = name[: -len(audio.suffix)] if name.endswith(audio.suffix) else name
    return Utterance(name, audio, spoken, row.get("speaker", ""), split)


def _find_audio(folder: Path, name: str) -> Path | None:
    """The sound file of an id or path, in ``wavs/`` or beside the table."""
    if not name:
        return None
    endings = ("",) if name.lower().endswith(AUDIO_SUFFIXES) else AUDIO_SUFFIXES
    candidates = (base / (name + ending) for base in (folder / "wavs", folder) for ending in endings)
    return next((path for path in candidates if path.is_file()), None)


def split_by_text(utterances: list[Utterance], eval_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the held-out utterances.

    The source's own split counts where it has one.  Otherwise a hash of the text decides, so that the split does not
    depend on the order or number of utterances and a held-out sentence is in training under no other voice either.

    Raises:
      UserError: the fraction is not in 0..1, or nothing is left for training.
    """
    if not 0.0 <= eval_fraction < 1.0:
        raise UserError(f"data.eval_fraction={eval_fraction}: expected 0 <= fraction < 1")
    if any(u.split for u in utterances):
        held_out = np.array([u.split == "eval" for u in utterances])
    else:
        draws = np.array([uniform("held out", u.text.casefold()) for u in utterances])
        held_out = draws < eval_fraction
        if eval_fraction > 0 and not held_out.any() and len(set(draws)) > 1:
            held_out = draws == draws.min()
    if held_out.all():
        raise UserError(f"all {len(utterances)} utterances are held out for evaluation; none is left for training")
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
