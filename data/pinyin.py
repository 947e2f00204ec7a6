"""The F5-TTS reference's text front end: characters for most scripts, tone-marked pinyin syllables for Chinese.

Chinese needs the extra ``pinyin`` (rjieba for word boundaries, pypinyin for syllables with tone sandhi); plain ASCII
text does not, and gives the same tokens with and without it.
"""

import re
from collections.abc import Iterable, Iterator

from data.errors import UserError

# The reference maps these before segmentation because its vocabulary lacks them.
_TRANSLATION = str.maketrans({";": ",", "“": '"', "”": '"', "‘": "'", "’": "'"})

# jieba's behaviour on ASCII: its dictionary holds these five words, other words may have inner dots, dashes and
# underscores and a final percent sign, other signs stand in runs, everything else is single.
_ASCII_DICTIONARY = re.compile(r"(AT&T|[cC]\+\+|[cC]#)")
_ASCII_PIECE = re.compile(r"[a-zA-Z0-9]+(?:[._-][a-zA-Z0-9]+)*%?|[+#&._%\-]+|\r\n|.", re.DOTALL)


def segment_ascii(text: str) -> list[str]:
    """Words of an ASCII text, cut where jieba cuts them."""
    parts = _ASCII_DICTIONARY.split(text)
    return [piece for i, part in enumerate(parts) for piece in ([part] if i % 2 else _ASCII_PIECE.findall(part))]


def _segment(text: str) -> Iterable[str]:
    if text.isascii():
        return segment_ascii(text)
    try:
        import rjieba
    except ImportError as e:
        raise _missing(text) from e
    return rjieba.cut(text)


def _syllables(text: str) -> list[str]:
    """One entry per character: syllable with tone digit for hanzi, the character itself otherwise."""
    try:
        from pypinyin import Style, lazy_pinyin
    except ImportError as e:
        raise _missing(text) from e
    # errors=list keeps neighbouring signs apart; the package's own annotation knows str → str only.
    return lazy_pinyin(text, style=Style.TONE3, tone_sandhi=True, errors=list)  # pyright: ignore[reportArgumentType]


def _missing(text: str) -> UserError:
    foreign = next(c for c in text if not c.isascii())
    return UserError(
        f"the pinyin tokenizer needs rjieba and pypinyin for {foreign!r} in {text[:40]!r}: "
        "pip install 'murmuration[pinyin]'"
    )


def _is_hanzi(char: str) -> bool:
    return "\u3100" <= char <= "\u9fff"


def _tokens(text: str, polyphone: bool) -> Iterator[str]:
    last = ""  # the token before; a word is set off with a space unless one of these is already there
    for word in _segment(text.translate(_TRANSLATION)):
        if word.isascii():
            if last and len(word) > 1 and last not in " :'\"":
                yield " "
            yield from word
            last = word[-1]
            continue
        # Whole words give the right reading of characters that have several; mixed words are read one by one.
        whole = polyphone and len(word.encode()) == 3 * len(word)
        syllables = _syllables(word) if whole else [_syllables(c)[0] if _is_hanzi(c) else c for c in word]
        for char, syllable in zip(word, syllables, strict=True):
            if _is_hanzi(char):
                yield " "
            yield syllable
        last = syllables[-1]


def pinyin_tokens(text: str, polyphone: bool = True) -> list[str]:
    """Text -> symbols of the reference's vocabulary.

    Args:
      text: any script.
      polyphone: read whole Chinese words (the reference's default) instead of single characters.

    Raises:
      UserError: the text is not ASCII and the extra ``pinyin`` is not installed.
    """
    return list(_tokens(text, polyphone))
