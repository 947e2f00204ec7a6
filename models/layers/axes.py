"""Logical axes of the parameters that several models share, for their ``AXES``."""

from collections.abc import Sequence

Rules = list[tuple[str, tuple[str | None, ...]]]  # (path regex, logical axis of each dimension)


def under(prefix: str, rules: Rules, stacked: bool = False) -> Rules:
    """The rules of a part of a model: ``prefix`` in front of every path, and of every shape if it is ``stacked``."""
    first: Sequence[str] = ("layers",) if stacked else ()
    return [(f"{prefix}/{path}", (*first, *axes)) for path, axes in rules]


TIME: Rules = [
    (r"up/kernel", (None, "mlp")),
    (r"up/bias", ("norm",)),
    (r"down/kernel", ("mlp", "embed")),
    (r"down/bias", ("norm",)),
]
CONVNEXT: Rules = [
    (r"conv/kernel", ("conv", None, "text")),
    (r"up/kernel", ("text", "mlp")),
    (r"down/kernel", ("mlp", "text")),
    (r"up/bias", ("mlp",)),
    (r"grn/(gamma|beta)", ("mlp",)),
    (r"(conv|down)/bias", ("norm",)),
    (r"norm/(scale|bias)", ("norm",)),
]
TEXT: Rules = [(r"embed/table", ("vocab", "text")), *under("blocks", CONVNEXT, stacked=True)]
POSITION: Rules = [
    (r"(first|second)/kernel", ("conv", None, "embed")),
    (r"(first|second)/bias", ("norm",)),
]
ATTENTION: Rules = [
    (r"(q|k|v)/kernel", ("embed", "heads")),
    (r"(q|k|v)/bias", ("heads",)),
    (r"(q|k)_norm/scale", ("norm",)),
    (r"out/kernel", ("heads", "embed")),
    (r"out/bias", ("norm",)),
]
MODULATION: Rules = [(r"kernel", ("embed", None)), (r"bias", ("norm",))]
FEED_FORWARD: Rules = [
    (r"up/kernel", ("embed", "mlp")),
    (r"up/bias", ("mlp",)),
    (r"down/kernel", ("mlp", "embed")),
    (r"down/bias", ("norm",)),
]
BLOCK: Rules = [*under("modulation", MODULATION), *under("attn", ATTENTION), *FEED_FORWARD]
# A speech network around its blocks.
FRAME: Rules = [
    *under("time", TIME),
    *under("text", TEXT),
    (r"input/kernel", (None, "embed")),
    (r"input/bias", ("norm",)),
    *under("position", POSITION),
    (r"output/kernel", ("embed", "mel")),
    (r"output/bias", ("mel",)),
]
