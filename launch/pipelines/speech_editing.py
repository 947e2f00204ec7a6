"""Speech editing: parts of a recording said anew, the rest of it untouched.

Given mel frames stay bit for bit what they are, and given samples are copied, but for a short cross-fade at each edge.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data.audio import MelSpec
from data.errors import UserError

FADE = 0.02  # seconds of the cross-fade at each edge, taken from what is kept
LEAST = 0.05  # seconds of a new part


@dataclasses.dataclass(frozen=True)
class Edit:
    """A span of the recording, in seconds, to be replaced.

    Attributes:
      start, end: the span; an insertion where they are equal.
      seconds: length of what comes in its place, 0 = cut the span out.  None: for the only edit, by the number of bytes
        that the text gains; for one of several, as long as the span.
    """

    start: float
    end: float
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The recording with room for what is new.

    Attributes:
      mel: [t, mels] the kept frames in their new places, 0 elsewhere.
      known: [t] bool, which they are.
      kept: (start, stop in the recording, start in the result) of every kept part, in samples.
      samples: of the result.
    """

    mel: np.ndarray
    known: np.ndarray
    kept: tuple[tuple[int, int, int], ...]
    samples: int


def parse_edits(text: str) -> list[Edit]:
    """ "start:end[:seconds],…" -> edits.

    Raises:
      UserError: not of this form.
    """
    edits = []
    for part in text.split(","):
        try:
            numbers = [float(number) for number in part.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) not in (2, 3):
            raise UserError(f"--edit={text!r}: {part!r} is not start:end or start:end:seconds")
        edits.append(Edit(*numbers))
    return edits


def new_lengths(edits: Sequence[Edit], seconds: float, ref_text: str, text: str) -> list[float]:
    """Seconds of every new part, checked.

    Args:
      seconds: of the recording.
      ref_text: its words, "" if they are not known.
      text: the words of the result.

    Raises:
      UserError: a span outside the recording, spans out of order or overlapping, or a length that cannot be told.
    """
    if not edits:
        raise UserError("there is nothing to edit; give spans start:end in seconds")
    before = 0.0
    for edit in edits:
        span = f"{edit.start:g}:{edit.end:g}"
        if not 0.0 <= edit.start <= edit.end <= seconds + 1e-3:
            raise UserError(f"the span {span} s does not lie in the recording, which lasts {seconds:.2f} s")
        if edit.start < before:
            raise UserError(f"the span {span} s begins before the one in front of it ends; give them in order")
        if edit.seconds is not None and not 0.0 <= edit.seconds < float("inf"):
            raise UserError(f"the span {span} s is to become {edit.seconds:g} s; expected 0 or more")
        before = edit.end
    lengths = []
    for edit in edits:
        if edit.seconds is not None:
            lengths.append(edit.seconds)
            continue
        length = edit.end - edit.start
        if len(edits) == 1 and ref_text:
            pace = seconds / len(ref_text.encode())
            length = max(length + pace * (len(text.encode()) - len(ref_text.encode())), LEAST)
        if length <= 0.0:
            raise UserError(f"how long is what comes at {edit.start:g} s? give start:end:seconds, or --ref_text")
        lengths.append(length)
    return lengths


def timeline(mel: np.ndarray, samples: int, edits: Sequence[Edit], lengths: Sequence[float], spec: MelSpec) -> Timeline:
    """Room for every edit, to whole frames, so that kept frames and samples move together.

    Args:
      mel: [f, mels] of the recording.
      samples: of the recording.
      lengths: seconds of the new parts.

    Raises:
      UserError: nothing of the recording is left, or nothing is new.
    """
    rate = spec.sample_rate / spec.hop
    frames, known, kept = [], [], []
    done = 0  # frames of the recording that are dealt with
    total = lambda: sum(len(part) for part in frames)  # noqa: E731
    for edit, length in zip(edits, lengths, strict=True):
        start, stop = (min(round(second * rate), len(mel)) for second in (edit.start, edit.end))
        if edit.end * spec.sample_rate > samples - spec.hop:
            stop = len(mel)  # to the very end
        if start > done:
            kept.append((done * spec.hop, start * spec.hop, total() * spec.hop))
            frames.append(mel[done:start])
            known.append(np.ones(start - done, bool))
        new = round(length * rate)
        frames.append(np.zeros((new, mel.shape[1]), np.float32))
        known.append(np.zeros(new, bool))
        done = max(stop, done)
    samples_out = (total() - 1) * spec.hop
    if done < len(mel):
        kept.append((done * spec.hop, samples, total() * spec.hop))
        samples_out = total() * spec.hop + samples - done * spec.hop
        frames.append(mel[done:])
        known.append(np.ones(len(mel) - done, bool))
    mask = np.concatenate(known)
    if not mask.any():
        raise UserError("the edits leave nothing of the recording; say the text with run_sample --text instead")
    if mask.all() and not any(edit.end > edit.start for edit in edits):
        raise UserError("the edits change nothing; give spans or lengths above 0")
    return Timeline(np.concatenate(frames), mask, tuple(kept), samples_out)


def splice(recording: np.ndarray, made: np.ndarray, line: Timeline, fade: int) -> np.ndarray:
    """The recording with ``made`` [n] in its gaps: [samples] float32.

    Samples of kept parts are copied exactly, but for ``fade`` samples next to each gap, in which they turn linearly
    into those of ``made``.
    """
    out = np.zeros(line.samples, np.float32)
    n = min(len(made), line.samples)
    out[:n] = made[:n]
    for start, stop, place in line.kept:
        part = recording[start:stop]
        end = min(place + len(part), line.samples)
        part = part[: end - place]
        weight = np.ones(len(part), np.float32)
        width = min(fade, len(part) // 2)
        ramp = (np.arange(width, dtype=np.float32) + 1.0) / (width + 1.0)
        if place > 0:
            weight[:width] = ramp
        if end < line.samples:
            weight[len(part) - width :] = ramp[::-1]
        whole = weight == 1.0
        mixed = weight * part + (1.0 - weight) * out[place:end]
        out[place:end] = np.where(whole, part, mixed)
    return out
