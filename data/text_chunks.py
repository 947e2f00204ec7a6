"""Long texts cut at sentence ends, as the F5-TTS reference cuts them before synthesis."""

import re

# After Western punctuation with white space behind it, or directly after full-width punctuation.
_BREAK = re.compile(r"(?<=[;:,.!?])\s+|(?<=[；：，。！？])")


def chunk_text(text: str, max_bytes: int = 135) -> list[str]:
    """Pieces of at most ``max_bytes`` UTF-8 bytes where the punctuation allows it; a longer sentence stays whole.

    The limit is in bytes because a Chinese character (three bytes) takes about as long to say as three Latin letters.
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
