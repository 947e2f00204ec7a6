"""What the model reads: ends of sentences, the two texts joined, the text in chunks."""

import unicodedata

from data.errors import UserError
from data.text import Tokenizer
from data.text_chunks import chunk_text, cut_text
from launch.pipelines.speech_durations import BYTES_PER_SECOND

RELEASE_SECONDS = 22.0  # of reference and new speech that the release puts into one sequence
FEWEST_BYTES = 8  # of a chunk


def finished(text: str, stop: bool = True) -> str:
    """``text`` as one sentence: no blanks around it and, with ``stop``, a full stop where it ends without a sign.

    The release does so with reference texts: without it a model cannot know where the reference ends.
    """
    text = text.strip()
    return f"{text}." if stop and text[-1:].isalnum() else text


def release_ending(ref_text: str) -> str:
    """The end that the release gives to reference texts: ". " or "。"."""
    if ref_text.endswith((". ", "。")):
        return ref_text
    return f"{ref_text} " if ref_text.endswith(".") else f"{ref_text}. "


def joined(ref_text: str, text: str, release: bool = False) -> str:
    """Both texts as the model reads them, a blank between them unless the first ends in a full-width sign.

    The release adds its blank to what ``release_ending`` left: two blanks stand in its prompts.
    """
    if release:
        return ref_text + " " * ref_text[-1].isascii() + text
    if not ref_text:
        return text
    return ref_text + ("" if unicodedata.east_asian_width(ref_text[-1]) in "WF" else " ") + text


def release_chunks(text: str, ref_text: str, ref_seconds: float, speed: float) -> tuple[list[str], int]:
    """The release's chunks and their limit in bytes, which falls below zero for references over 22 s."""
    limit = int(len(ref_text.encode()) / ref_seconds * (RELEASE_SECONDS - ref_seconds) * speed)
    return chunk_text(text, limit), limit


def chunks(
    text: str, ref_text: str, ref_seconds: float, speed: float, longest: float, first_seconds: float | None = None
) -> tuple[list[str], int]:
    """Chunks that fit behind the reference into ``longest`` seconds, or into half of them if it is long itself.

    Returns:
      the chunks and the limit in bytes.
    """
    pace = speed * (len(ref_text.encode()) / ref_seconds if ref_seconds else BYTES_PER_SECOND)
    limit = max(int(pace * max(longest - ref_seconds, longest / 2)), FEWEST_BYTES)
    first = None if first_seconds is None else max(int(pace * first_seconds), FEWEST_BYTES)
    return cut_text(text, limit, first), limit


def ids_of(tokenizer: Tokenizer, text: str, said: str) -> list[int]:
    """Ids of ``text``, of which ``said`` is the new part.

    Raises:
      UserError: a symbol has no id, or, where the tokenizer takes unknown ones for blanks, all letters of ``said`` are
        such.
    """
    ids = tokenizer.encode(text)
    symbols = [symbol for symbol in tokenizer.split(said) if any(map(str.isalnum, symbol))]
    if symbols and set(symbols) <= set(tokenizer.unknown_symbols(said)):
        raise UserError(f"the tokenizer knows no symbol of {said[:60]!r}; give a text in the script it was made for")
    return ids
