"""Long texts cut into pieces that a speech model says one by one."""

import re

# After Western punctuation with white space behind it, or directly after full-width punctuation.
_BREAK = re.compile(r"(?<=[;:,.!?])\s+|(?<=[；：，。！？])")
_WORD = re.compile(r"\S+\s*")
_SLACK = 1.5  # a sentence is broken inside only if it is longer than the limit by this factor


def chunk_text(text: str, max_bytes: int = 135) -> list[str]:
    """Pieces of at most ``max_bytes`` UTF-8 bytes where the punctuation allows it; a longer sentence stays whole.

    The limit is in bytes because a Chinese character (three bytes) takes about as long to say as three Latin letters.
    This is the F5-TTS reference's rule, which also cuts after every comma and colon.
    """
    chunks, current = [], ""
    for sentence in _BREAK.split(text):
        if sentence and sentence[-1].isascii():
            sentence += " "
        # The blank between sentences is not counted for the sentence that is being added.
        if current and len(current.encode()) + len(sentence.removesuffix(" ").encode()) > max_bytes:
            chunks.append(current.strip())
            current = ""
        current += sentence
    return [*chunks, current.strip()] if current else chunks


def cut_text(text: str, max_bytes: int, first_bytes: int | None = None) -> list[str]:
    """As ``chunk_text``, but no piece is longer than 1.5 × ``max_bytes``, unless it is a single word of that length.

    Args:
      text: any length; white space is made single blanks.
      max_bytes: UTF-8 bytes.
      first_bytes: of the first piece alone, where it should be heard soon.
    """
    text = " ".join(text.split())
    if first_bytes is not None and len(text.encode()) > first_bytes * _SLACK:
        head = _pieces(text, min(first_bytes, max_bytes))[0]
        return [head, *cut_text(text[len(head) :], max_bytes)]
    return [piece for piece in _pieces(text, max_bytes) if piece.strip()]


def _pieces(text: str, max_bytes: int) -> list[str]:
    pieces = []
    for chunk in chunk_text(text, max_bytes):
        parts = -(-len(chunk.encode()) // max_bytes) if len(chunk.encode()) > max_bytes * _SLACK else 1
        pieces += _spread(chunk, parts) if parts > 1 else [chunk]
    return pieces


def _spread(sentence: str, parts: int) -> list[str]:
    """A sentence in ``parts`` pieces of like length, broken between words; between characters where there are none."""
    words = _WORD.findall(sentence)
    if len(words) < parts:
        words = list(sentence)
    goal, done = len(sentence.encode()) / parts, 0
    pieces = [""]
    for word in words:
        # A word belongs to the piece that its middle falls into.
        if pieces[-1] and done + len(word.encode()) / 2 > goal * len(pieces):
            pieces.append("")
        pieces[-1] += word
        done += len(word.encode())
    return [piece.strip() for piece in pieces]
