"""How many frames a text takes: by rule, at a fixed pace, or by anything that can be called like these."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from data.errors import UserError

BYTES_PER_SECOND = 14.0  # of English; the pace where there is no reference to take it from


class DurationPredictor(Protocol):
    """Predicts how long new speech lasts.  A trained one and the rules below are exchangeable."""

    def __call__(self, ref_frames: int, ref_ids: Sequence[int], ids: Sequence[int], texts: tuple[str, str]) -> float:
        """Mel frames of the new speech at the reference's pace; the caller divides by the speed and rounds.

        Args:
          ref_frames: frames of the reference clip, 0 where there is none.
          ref_ids, ids: symbols of the reference's words and of the new ones, from the model's tokenizer.
          texts: the same as strings.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ByteRule:
    """The pace of the reference: frames are proportional to UTF-8 bytes, as in F5-TTS.

    Each text counts one byte more, for the pause that separates it from the next.

    Attributes:
      frame_rate: frames per second.
    """

    frame_rate: float

    def __call__(self, ref_frames: int, ref_ids: Sequence[int], ids: Sequence[int], texts: tuple[str, str]) -> float:
        """See ``DurationPredictor``."""
        ref_bytes, new_bytes = (len(text.encode()) + 1 for text in texts)
        if not ref_frames:
            return self.frame_rate * new_bytes / BYTES_PER_SECOND
        return ref_frames * new_bytes / ref_bytes


@dataclasses.dataclass(frozen=True)
class ReleaseRule:
    """The release's own proportion, without the pause."""

    def __call__(self, ref_frames: int, ref_ids: Sequence[int], ids: Sequence[int], texts: tuple[str, str]) -> float:
        """See ``DurationPredictor``."""
        ref_text, text = texts
        return ref_frames / len(ref_text.encode()) * len(text.encode())


@dataclasses.dataclass(frozen=True)
class FixedPace:
    """The same pace whatever the reference.

    Attributes:
      frame_rate: frames per second.
      bytes_per_second: of UTF-8; English is read at about 14.
    """

    frame_rate: float
    bytes_per_second: float = BYTES_PER_SECOND

    def __post_init__(self) -> None:
        if not self.bytes_per_second > 0:
            raise UserError(f"a fixed pace of {self.bytes_per_second} bytes per second; expected more than 0")

    def __call__(self, ref_frames: int, ref_ids: Sequence[int], ids: Sequence[int], texts: tuple[str, str]) -> float:
        """See ``DurationPredictor``."""
        return self.frame_rate * (len(texts[1].encode()) + 1) / self.bytes_per_second


def duration_rule(name: str, frame_rate: float) -> DurationPredictor:
    """The rule called "rule", or "fixed", or "fixed:<bytes per second>".

    Raises:
      UserError: another name.
    """
    kind, _, pace = name.partition(":")
    if kind == "rule" and not pace:
        return ByteRule(frame_rate)
    if kind == "fixed":
        try:
            value = float(pace) if pace else BYTES_PER_SECOND
        except ValueError:
            raise UserError(f"durations are {name!r}; expected a number behind fixed:") from None
        return FixedPace(frame_rate, value)
    raise UserError(f"durations are {name!r}; expected rule, fixed or fixed:<bytes per second>")
