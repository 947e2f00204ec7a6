"""Public F5-TTS checkpoints <-> our parameters.

A release holds ``initted``, ``step`` and ``ema_model.transformer.*`` in PyTorch layout. Names and shapes do not tell
v0 from v1 (``text_mask_padding``, ``pe_attn_head``): those options come from the config, not from the file.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PREFIX = "ema_model.transformer."
# Counters, and buffers that are computed again.
IGNORED = re.compile(r"initted|step|(ema_model\.)?mel_spec\..*|.*rotary_embed\.inv_freq")

# Our path (``#`` = layer, stacked along the first axis on our side) -> official name.
NAMES: dict[str, str] = {
    "time/up": "time_embed.time_mlp.0",
    "time/down": "time_embed.time_mlp.2",
    "text/embed/table": "text_embed.text_embed.weight",
    "text/blocks/conv": "text_embed.text_blocks.#.dwconv",
    "text/blocks/norm": "text_embed.text_blocks.#.norm",
    "text/blocks/up": "text_embed.text_blocks.#.pwconv1",
    "text/blocks/grn/gamma": "text_embed.text_blocks.#.grn.gamma",
    "text/blocks/grn/beta": "text_embed.text_blocks.#.grn.beta",
    "text/blocks/down": "text_embed.text_blocks.#.pwconv2",
    "input": "input_embed.proj",
    "position/first": "input_embed.conv_pos_embed.conv1d.0",
    "position/second": "input_embed.conv_pos_embed.conv1d.2",
    "blocks/modulation": "transformer_blocks.#.attn_norm.linear",
    "blocks/attn/q": "transformer_blocks.#.attn.to_q",
    "blocks/attn/k": "transformer_blocks.#.attn.to_k",
    "blocks/attn/v": "transformer_blocks.#.attn.to_v",
    "blocks/attn/out": "transformer_blocks.#.attn.to_out.0",
    "blocks/attn/q_norm": "transformer_blocks.#.attn.q_norm",
    "blocks/attn/k_norm": "transformer_blocks.#.attn.k_norm",
    "blocks/up": "transformer_blocks.#.ff.ff.0.0",
    "blocks/down": "transformer_blocks.#.ff.ff.2",
    "long_skip": "long_skip_connection",
    "modulation": "norm_out.linear",
    "output": "proj_out",
}
LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight"}


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened to the tensors of a file: official names, sorted."""

    used: tuple[str, ...]
    dropped: tuple[str, ...]  # counters and buffers that are recomputed


def build_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Official constructor arguments of the DiT backbone -> those of ``models.dit.DiT``.

    Raises:
      ValueError: an argument is not known.
    """
    renamed = {"text_embedding_average_upsampling": "text_average_upsampling"}
    ignored = {"checkpoint_activations", "attn_backend"}  # how the release computes, not what
    known = {
        "dim", "depth", "heads", "dim_head", "ff_mult", "mel_dim", "text_num_embeds", "text_dim", "conv_layers",
        "text_mask_padding", "qk_norm", "pe_attn_head", "attn_mask_enabled", "long_skip_connection", "dropout",
    }  # fmt: skip
    unknown = sorted(set(kwargs) - known - ignored - set(renamed))
    if unknown:
        raise ValueError(f"model option {unknown[0]!r} is unknown to the F5-TTS DiT; known: {', '.join(sorted(known))}")
    return {renamed.get(key, key): value for key, value in kwargs.items() if key not in ignored}


def from_official(tensors: Mapping[str, np.ndarray], abstract: Mapping[str, Any]) -> tuple[dict[str, Any], Report]:
    """Official tensors -> parameters shaped like ``abstract`` (``functional(...).abstract()["params"]``).

    Names may carry the prefix ``ema_model.transformer.``, ``transformer.`` or none.

    Returns:
      ``(params, report)``; numpy arrays in float32.

    Raises:
      ValueError: tensors are missing, left over or misshapen; all of them are named.
    """
    tensors = {_bare(name): value for name, value in tensors.items()}
    dropped = sorted(name for name in tensors if IGNORED.fullmatch(name))
    params: dict[str, Any] = {}
    used: set[str] = set()
    problems: list[str] = []
    for path, leaf in _flatten(abstract):
        names = _official(path, leaf.shape)
        found = [tensors[name] for name in names if name in tensors]
        used.update(name for name in names if name in tensors)
        problems += [f"missing {name}" for name in names if name not in tensors]
        if len(found) < len(names):
            continue
        wanted = _to_official_shape(path, leaf.shape)
        wrong = [(n, v.shape) for n, v in zip(names, found, strict=True) if tuple(v.shape) != wanted]
        problems += [f"{name} has shape {tuple(shape)}, expected {wanted}" for name, shape in wrong]
        if wrong:
            continue
        parts = [_from_official_layout(path, np.asarray(v).astype(np.float32)) for v in found]
        _insert(params, path, np.stack(parts) if _layered(path) else parts[0])
    problems += [f"unexpected {name}" for name in sorted(set(tensors) - used - set(dropped))]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise ValueError(f"the checkpoint does not fit the model: {shown}. Check depth, widths and vocabulary")
    return params, Report(tuple(sorted(used)), tuple(dropped))


def to_official(params: Mapping[str, Any], prefix: str = PREFIX) -> dict[str, np.ndarray]:
    """Parameters -> official names and layout; the inverse of ``from_official``."""
    out: dict[str, np.ndarray] = {}
    for path, leaf in _flatten(params):
        array = np.asarray(leaf)
        rows = array if _layered(path) else [array]
        for name, row in zip(_official(path, array.shape), rows, strict=True):
            out[prefix + name] = np.ascontiguousarray(_to_official_layout(path, row))
    return out


def read(file: str | Path, abstract: Mapping[str, Any]) -> tuple[dict[str, Any], Report]:
    """Reads a public ``.safetensors`` checkpoint; see ``from_official``.

    Raises:
      ValueError: the file is not safetensors, or does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return from_official(load_file(file), abstract)
    except SafetensorError as e:
        raise ValueError(f"{file} is not a safetensors file ({e})") from e
    except ValueError as e:
        raise ValueError(f"{file}: {e}") from e


def write(file: str | Path, params: Mapping[str, Any], *, step: int = 0, dim_head: int = 64) -> None:
    """Writes ``params`` as the release does: official names, ``initted``, ``step`` and the rotary buffer."""
    from safetensors.numpy import save_file

    tensors = to_official(params)
    frequency = 10000.0 ** (-np.arange(0, dim_head, 2, dtype=np.float32) / dim_head)
    tensors[PREFIX + "rotary_embed.inv_freq"] = frequency.astype(np.float32)
    tensors["initted"] = np.array(True)
    tensors["step"] = np.array(step)
    save_file(tensors, file)


def _bare(name: str) -> str:
    for prefix in (PREFIX, "transformer."):
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out = []
    for key, value in tree.items():
        out += _flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else [(prefix + key, value)]
    return out


def _insert(tree: dict[str, Any], path: str, value: np.ndarray) -> None:
    *parents, last = path.split("/")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value


def _layered(path: str) -> bool:
    return path.startswith(("blocks/", "text/blocks/"))


def _official(path: str, shape: tuple[int, ...]) -> list[str]:
    """The official names behind one of our parameters, one per layer."""
    if path in NAMES:
        name = NAMES[path]
    else:
        parent, leaf = path.rsplit("/", 1)
        name = f"{NAMES[parent]}.{LEAVES[leaf]}"
    return [name.replace("#", str(i)) for i in range(shape[0])] if _layered(path) else [name]


def _to_official_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    row = shape[1:] if _layered(path) else shape
    return _to_official_layout(path, np.empty(row, np.bool_)).shape


def _to_official_layout(path: str, row: np.ndarray) -> np.ndarray:
    if path.endswith(("grn/gamma", "grn/beta")):
        return row[None, None]
    return row.T if path.endswith("kernel") else row  # [in, out] -> [out, in]; [k, in, out] -> [out, in, k]


def _from_official_layout(path: str, row: np.ndarray) -> np.ndarray:
    if path.endswith(("grn/gamma", "grn/beta")):
        return row[0, 0]
    return row.T if path.endswith("kernel") else row
