"""Official tensor names of the F5-TTS backbones, one table per backbone.

Our path -> official name; ``#`` stands for the number of a layer, which is the first axis of our arrays.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight"}

_TIME = {"time/up": "time_embed.time_mlp.0", "time/down": "time_embed.time_mlp.2"}
_TEXT = {
    "text/embed/table": "text_embed.text_embed.weight",
    "text/blocks/conv": "text_embed.text_blocks.#.dwconv",
    "text/blocks/norm": "text_embed.text_blocks.#.norm",
    "text/blocks/up": "text_embed.text_blocks.#.pwconv1",
    "text/blocks/grn/gamma": "text_embed.text_blocks.#.grn.gamma",
    "text/blocks/grn/beta": "text_embed.text_blocks.#.grn.beta",
    "text/blocks/down": "text_embed.text_blocks.#.pwconv2",
}


def _input(project: str, position: str) -> dict[str, str]:
    return {
        "input": project,
        "position/first": f"{position}.conv1d.0",
        "position/second": f"{position}.conv1d.2",
    }


def _attention(ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}/q": f"{theirs}.to_q",
        f"{ours}/k": f"{theirs}.to_k",
        f"{ours}/v": f"{theirs}.to_v",
        f"{ours}/out": f"{theirs}.to_out.0",
        f"{ours}/q_norm": f"{theirs}.q_norm",
        f"{ours}/k_norm": f"{theirs}.k_norm",
    }


def _layer(ours: str) -> dict[str, str]:
    """A layer of the U-Net: a list of five modules, the first of them only in the second half."""
    return {
        f"{ours}/skip": "layers.#.0",
        f"{ours}/attn_norm/scale": "layers.#.1.g",
        **_attention(f"{ours}/attn", "layers.#.2"),
        f"{ours}/ff_norm/scale": "layers.#.3.g",
        f"{ours}/up": "layers.#.4.ff.0.0",
        f"{ours}/down": "layers.#.4.ff.2",
    }


def _joint(ours: str) -> dict[str, str]:
    """A joint block: audio is the release's x, text its c (context)."""
    block, audio, text = "transformer_blocks.#", f"{ours}/audio", f"{ours}/text"
    names = {
        f"{audio}/modulation": f"{block}.attn_norm_x.linear",
        **_attention(f"{audio}/attn", f"{block}.attn"),
        f"{audio}/up": f"{block}.ff_x.ff.0.0",
        f"{audio}/down": f"{block}.ff_x.ff.2",
        f"{text}/modulation": f"{block}.attn_norm_c.linear",
        f"{text}/up": f"{block}.ff_c.ff.0.0",
        f"{text}/down": f"{block}.ff_c.ff.2",
    }
    names |= {f"{text}/attn/{part}": f"{block}.attn.to_{part}_c" for part in ("q", "k", "v", "out")}
    return names | {f"{text}/attn/{part}_norm": f"{block}.attn.c_{part}_norm" for part in ("q", "k")}


DIT = {
    **_TIME,
    **_TEXT,
    **_input("input_embed.proj", "input_embed.conv_pos_embed"),
    "blocks/modulation": "transformer_blocks.#.attn_norm.linear",
    **_attention("blocks/attn", "transformer_blocks.#.attn"),
    "blocks/up": "transformer_blocks.#.ff.ff.0.0",
    "blocks/down": "transformer_blocks.#.ff.ff.2",
    "long_skip": "long_skip_connection",
    "modulation": "norm_out.linear",
    "output": "proj_out",
}
UNETT = {
    **_TIME,
    **_TEXT,
    **_input("input_embed.proj", "input_embed.conv_pos_embed"),
    **_layer("early"),
    **_layer("late"),
    "norm/scale": "norm_out.g",
    "output": "proj_out",
}
MMDIT = {
    **_TIME,
    "text/embed/table": _TEXT["text/embed/table"],
    **_input("audio_embed.linear", "audio_embed.conv_pos_embed"),
    **_joint("blocks"),
    **_joint("last"),
    "modulation": "norm_out.linear",
    "output": "proj_out",
}


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of one network's tensors.

    Attributes:
      table: one of the above.
      first: number of the first layer of each part that has layers; the others start at 0.
      alone: parts that are one layer, not a stack of them.
    """

    table: Mapping[str, str]
    first: Mapping[str, int]
    alone: frozenset[str] = frozenset()

    def stacked(self, path: str) -> bool:
        """Whether the first axis of this parameter counts layers."""
        return "#" in self._template(path) and path.split("/")[0] not in self.alone

    def official(self, path: str, shape: tuple[int, ...]) -> list[str]:
        """The official names behind one of our parameters: one per layer, or one."""
        template = self._template(path)
        if "#" not in template:
            return [template]
        first = self.first.get(path.split("/")[0], 0)
        count = shape[0] if self.stacked(path) else 1
        return [template.replace("#", str(first + i)) for i in range(count)]

    def _template(self, path: str) -> str:
        if path in self.table:
            return self.table[path]
        parent, leaf = path.rsplit("/", 1)
        return f"{self.table[parent]}.{LEAVES[leaf]}"


def names_of(params: Mapping[str, Any]) -> Names:
    """The names for a parameter tree (of arrays or abstract); its top-level parts tell the backbone."""
    if "early" in params:
        return Names(UNETT, {"late": _depth(params["early"])})
    if "last" in params:
        return Names(MMDIT, {"last": _depth(params.get("blocks", {}))}, alone=frozenset({"last"}))
    return Names(DIT, {})


def _depth(stack: Mapping[str, Any]) -> int:
    return next((leaf.shape[0] for _, leaf in flatten(stack)), 0)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of nested dicts."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value
