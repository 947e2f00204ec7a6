"""Text to integer ids and back into a folder: characters, the reference's vocabulary files, pinyin, bytes.

Ids are positions in ``symbols``; -1 pads a batch.  No symbol is ever silently replaced: what has no id is reported, and
``encode`` refuses it.  (The reference maps it to id 0, a space; ``unknown="space"`` reproduces that.)
"""

import dataclasses
import functools
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.pinyin import pinyin_tokens

KINDS = ("char", "vocab", "pinyin", "byte")
ASSET = "tokenizer.json"


class UnknownSymbols(UserError):
    """A text holds symbols that the tokenizer has no id for; ``symbols`` lists them."""

    def __init__(self, symbols: list[str], text: str, known: Sequence[str]):
        self.symbols = symbols
        shown = "".join(s for s in known if len(s) == 1)
        super().__init__(
            f"no id for {' '.join(map(describe, symbols))} in {text[:60]!r}; the tokenizer knows {shown[:120]!r}. "
            "Rewrite the text, or train with a vocabulary that has them"
        )


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A table of symbols and the rule that cuts a text into them.

    Attributes:
      kind: "char" (characters found in the data), "vocab" (characters, table from a file), "pinyin" (the reference's
        Chinese front end), "byte" (UTF-8 bytes, 256 ids, no table).
      symbols: symbol of every id.
      lowercase: texts are lowered first; set for data that holds no capital letters, so that "Nine" is no surprise.
      unknown: "reject", or "space" for the reference's silent id 0.
    """

    kind: str
    symbols: tuple[str, ...] = ()
    lowercase: bool = False
    unknown: str = "reject"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"tokenizer {self.kind!r} is not known: expected one of {', '.join(KINDS)}")
        if self.unknown not in ("reject", "space"):
            raise UserError(f"tokenizer: unknown={self.unknown!r} is not known: expected 'reject' or 'space'")

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    @property
    def size(self) -> int:
        """Number of ids, the model's vocabulary size."""
        return 256 if self.kind == "byte" else len(self.symbols)

    def split(self, text: str) -> list[str]:
        """The symbols of a text, known or not (for "byte" the characters)."""
        if self.kind == "char":
            text = normalise(text)
        if self.lowercase:
            text = text.lower()
        return pinyin_tokens(text) if self.kind == "pinyin" else list(text)

    def unknown_symbols(self, text: str) -> list[str]:
        """Symbols of ``text`` without an id, each once, in order of appearance."""
        if self.kind == "byte":
            return []
        return list(dict.fromkeys(s for s in self.split(text) if s not in self._ids))

    def encode(self, text: str) -> list[int]:
        """Ids of a text.

        Raises:
          UnknownSymbols: some symbol has no id (unless ``unknown="space"``).
        """
        if self.kind == "byte":
            return list((text.lower() if self.lowercase else text).encode())
        if self.unknown == "reject" and (missing := self.unknown_symbols(text)):
            raise UnknownSymbols(missing, text, self.symbols)
        return [self._ids.get(symbol, 0) for symbol in self.split(text)]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"symbols": list(self.symbols)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Tokenizer":
        return cls(fields["kind"], tuple(fields["symbols"]), fields["lowercase"], fields["unknown"])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``tokenizer.json`` into an assets folder."""
        path = Path(folder) / ASSET
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Reads ``tokenizer.json``, given the file or the folder that holds it."""
        path = Path(path)
        path = path / ASSET if path.is_dir() else path
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as e:
            raise UserError(f"{path}: no such tokenizer file") from e
        except (ValueError, TypeError, KeyError) as e:
            raise UserError(f"{path}: not a tokenizer file written by this program ({e})") from e


def normalise(text: str) -> str:
    """Composed characters (NFC), every white space character a plain space."""
    return "".join(" " if c.isspace() else c for c in unicodedata.normalize("NFC", text))


def tokenizer_from_texts(kind: str, texts: Iterable[str]) -> Tokenizer:
    """A tokenizer whose table is what occurs in ``texts``: space first (as in the reference), then by code point."""
    if kind == "byte":
        return Tokenizer("byte")
    Tokenizer(kind)  # refuses unknown kinds
    if kind == "vocab":
        raise UserError(f"tokenizer {kind!r} cannot be made from the data: give its file in data.vocab")
    found = {symbol for text in texts for symbol in Tokenizer(kind).split(text)}
    lowercase = kind == "char" and not any(symbol != symbol.lower() for symbol in found)
    return Tokenizer(kind, (" ", *sorted(found - {" "})), lowercase=lowercase)


def read_vocab(path: str | os.PathLike[str], eat_last: bool = False) -> tuple[str, ...]:
    """Symbols of a reference ``vocab.txt``: one per line, line number = id, line 0 is the space.

    Args:
      path: the file, UTF-8.
      eat_last: cut the last character of a file without a final newline, as the reference does.

    Raises:
      UserError: not readable as such a file.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")  # \r\n becomes \n; other line separators are symbols and stay
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such vocabulary file") from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text (byte {e.start}); save the vocabulary as UTF-8") from e
    symbols = (text if text.endswith("\n") else text[:-1] + "\n" if eat_last else text + "\n").split("\n")[:-1]
    if symbols[0] != " ":
        raise UserError(f"{path}: line 1 must be a single space (id 0), found {symbols[0]!r}")
    twice = [s for s, n in Counter(symbols).items() if n > 1]
    if twice:
        lines = [i + 1 for i, s in enumerate(symbols) if s == twice[0]]
        raise UserError(f"{path}: {twice[0]!r} stands on lines {lines}; every symbol may occur once")
    return tuple(symbols)


def make_tokenizer(kind: str, vocab: str = "", texts: Iterable[str] = ()) -> Tokenizer:
    """The tokenizer of a data set.

    Args:
      kind: see ``Tokenizer``.
      vocab: a ``vocab.txt``, or a ``tokenizer.json`` of an earlier run, which then decides alone; "" = from ``texts``.
      texts: what the table is made of where no file is given.
    """
    if vocab.endswith(".json"):
        return Tokenizer.load(vocab)
    if kind == "byte" or not vocab:
        return tokenizer_from_texts(kind, texts)
    if kind == "char":
        raise UserError("data.tokenizer='char' makes its own table; use 'vocab' (or 'pinyin') with data.vocab")
    return Tokenizer(kind, read_vocab(vocab))


def pad_ids(rows: Sequence[Sequence[int]], length: int | None = None) -> np.ndarray:
    """Rows of ids -> [rows, length] int32, padded with -1."""
    out = np.full((len(rows), max(map(len, rows), default=0) if length is None else length), -1, np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def script(char: str) -> str:
    """Writing system of a letter ("Latin", "Cyrillic", "Cjk", …), from its Unicode name; "other" for the rest."""
    if not char.isalpha():
        return "other"
    return unicodedata.name(char, "unnamed").split()[0].split("-")[0].capitalize()


def describe(symbol: str) -> str:
    """A symbol so that look-alikes can be told apart: ``'а' (U+0430 CYRILLIC SMALL LETTER A)``."""
    if len(symbol) != 1 or symbol.isascii():
        return repr(symbol)
    return f"{symbol!r} (U+{ord(symbol):04X} {unicodedata.name(symbol, 'unnamed')})"


def script_report(texts: Iterable[str]) -> dict[str, dict[str, int]]:
    """How often each symbol of each script occurs: {"Latin": {"a": 12, …}, "other": …}.

    A script with a handful of occurrences is usually a look-alike (Cyrillic "а" in an English word) and worth a look.
    """
    report: dict[str, dict[str, int]] = {}
    for char, count in Counter(c for text in texts for c in normalise(text)).most_common():
        report.setdefault(script(char), {})[char] = count
    return report
