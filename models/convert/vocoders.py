"""Public vocoder checkpoints <-> our parameters.

Vocos (``charactr/vocos-mel-24khz``) has ``backbone.*``, ``head.*`` and buffers that are computed again.  BigVGAN v2
(``nvidia/bigvgan_v2_*``) has weight-normalised convolutions, ``weight_g`` and ``weight_v`` or, after a newer PyTorch,
``parametrizations.weight.original0`` and ``original1``; they become the weights they stand for.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.convert.torch_file import read_torch

# Our path -> official name; ``#`` = layer, stacked along the first axis on our side.
VOCOS: list[tuple[str, str]] = [
    (r"embed", "backbone.embed"),
    (r"norm", "backbone.norm"),
    (r"blocks/conv", "backbone.convnext.#.dwconv"),
    (r"blocks/norm", "backbone.convnext.#.norm"),
    (r"blocks/up", "backbone.convnext.#.pwconv1"),
    (r"blocks/down", "backbone.convnext.#.pwconv2"),
    (r"blocks", "backbone.convnext.#"),
    (r"final_norm", "backbone.final_layer_norm"),
    (r"head", "head.out"),
]
BIGVGAN: list[tuple[str, str]] = [
    (r"pre", "conv_pre"),
    (r"ups/(\d+)", r"ups.\1.0"),
    (r"blocks/(\d+)/first/(\d+)", r"resblocks.\1.convs1.\2"),
    (r"blocks/(\d+)/second/(\d+)", r"resblocks.\1.convs2.\2"),
    (r"blocks/(\d+)/snakes/(\d+)", r"resblocks.\1.activations.\2.act"),
    (r"snake", "activation_post.act"),
    (r"post", "conv_post"),
]
LEAVES = {"kernel": "weight", "scale": "weight"}
BUFFERS = re.compile(r"feature_extractor\..*|head\.istft\.window|.*\.(upsample|downsample\.lowpass)\.filter")
WRAPPERS = ("generator", "state_dict")  # what a file may have around the tensors
NORMED = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened to the tensors of a file: official names, sorted.

    Attributes:
      used: became parameters; a weight-normalised one counts once.
      dropped: buffers that are computed again.
    """

    used: tuple[str, ...]
    dropped: tuple[str, ...]


def read(file: str | Path, abstract: Mapping[str, Any]) -> tuple[dict[str, Any], Report]:
    """Reads a ``.safetensors`` file, or one that ``torch.save`` wrote; see ``from_official``.

    Raises:
      ValueError: the file is neither, or does not fit the network.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(file) if Path(file).suffix == ".safetensors" else read_torch(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file ({error})") from error
    for name in WRAPPERS:
        if isinstance(tensors, Mapping) and isinstance(tensors.get(name), Mapping):
            tensors = tensors[name]
    if not isinstance(tensors, Mapping) or not all(isinstance(a, np.ndarray) for a in tensors.values()):
        raise ValueError(f"{file} holds no state dict; expected tensors by name, or that under {' or '.join(WRAPPERS)}")
    try:
        return from_official(tensors, abstract)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def from_official(tensors: Mapping[str, np.ndarray], abstract: Mapping[str, Any]) -> tuple[dict[str, Any], Report]:
    """Official tensors -> parameters shaped like ``abstract`` (``functional(...).abstract()["params"]``), float32.

    Raises:
      ValueError: tensors are missing, left over, misshapen or not finite; the first of them are named.
    """
    tensors = unnormed(tensors)
    dropped = {name for name in tensors if BUFFERS.fullmatch(name)}
    params: dict[str, Any] = {}
    used: set[str] = set()
    problems: list[str] = []
    for path, leaf in _flatten(abstract):
        rows = []
        for name in official_names(path, leaf.shape):
            if name not in tensors:
                problems.append(f"missing {name}")
                continue
            used.add(name)
            row = _swap(path, np.asarray(tensors[name], np.float32), back=True)
            wanted = leaf.shape[1:] if _layered(path) else leaf.shape
            if row.shape != tuple(wanted):
                problems.append(
                    f"{name} has shape {tensors[name].shape}, expected {_swap(path, np.empty(wanted)).shape}"
                )
            elif not np.isfinite(row).all():
                problems.append(f"NaN or infinity in {name}")
            rows.append(row)
        if not problems:
            _insert(params, path, np.stack(rows) if _layered(path) else np.ascontiguousarray(rows[0]))
    problems += [f"unexpected {name}" for name in sorted(set(tensors) - used - dropped)]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise ValueError(f"the checkpoint does not fit the vocoder: {shown}. Check the config's sizes")
    return params, Report(tuple(sorted(used)), tuple(sorted(dropped)))


def to_official(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters -> official names and layout without buffers; the inverse of ``from_official``."""
    out: dict[str, np.ndarray] = {}
    for path, leaf in _flatten(params):
        array = np.asarray(leaf)
        rows = array if _layered(path) else [array]
        for name, row in zip(official_names(path, array.shape), rows, strict=True):
            out[name] = np.ascontiguousarray(_swap(path, row))
    return out


def official_names(path: str, shape: tuple[int, ...]) -> list[str]:
    """The official names behind one of our parameters, one per layer.

    Raises:
      ValueError: no vocoder that we convert has such a parameter.
    """
    parent, leaf = path.rsplit("/", 1)
    table = BIGVGAN if re.match(r"(pre|post|ups|snake)/|blocks/\d", path) else VOCOS
    for pattern, name in table:
        if match := re.fullmatch(pattern, parent):
            full = f"{match.expand(name)}.{LEAVES.get(leaf, leaf)}"
            return [full.replace("#", str(i)) for i in range(shape[0])] if "#" in full else [full]
    raise ValueError(f"there is no public name for the parameter {path}")


def unnormed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weight normalisation folded in: g · v / |v|, |v| over all axes but the first."""
    out = dict(tensors)
    for length, direction in NORMED:
        for name in [n for n in tensors if n.endswith(f".{length}")]:
            base = name.removesuffix(length)
            if base + direction not in tensors:
                continue  # reported as unexpected
            g, v = (np.asarray(out.pop(base + part), np.float64) for part in (length, direction))
            size = np.sqrt(np.square(v).sum(axis=tuple(range(1, v.ndim)), keepdims=True))
            out[f"{base}weight"] = (g * v / size).astype(np.float32)
    return out


def _swap(path: str, row: np.ndarray, back: bool = False) -> np.ndarray:
    """Kernels between our layout [width, in, out] and PyTorch's [out, in, width], transposed ones [in, out, width]."""
    if not path.endswith("kernel"):
        return row
    if path.startswith("ups/"):
        return np.moveaxis(row, -1, 0) if back else np.moveaxis(row, 0, -1)
    return row.T


def _layered(path: str) -> bool:
    return re.match(r"blocks/[a-z]", path) is not None


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
