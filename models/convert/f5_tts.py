"""Public F5-TTS and E2-TTS checkpoints <-> our parameters.

A release holds ``initted``, ``step`` and ``ema_model.transformer.*`` in PyTorch layout. Names and shapes do not tell
v0 from v1 (``text_mask_padding``, ``pe_attn_head``): those options come from the config, not from the file.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.convert.f5_names import flatten, names_of
from models.dit import DiT
from models.functional import Functional, functional
from models.layers.backbone import Padding, SpeechBackbone
from models.mmdit import MMDiT
from models.unett import UNetT

PREFIX = "ema_model.transformer."
ROTARY = "rotary_embed.inv_freq"
# Counters, and buffers that are computed again.
IGNORED = re.compile(rf"initted|step|(ema_model\.)?mel_spec\..*|{re.escape(ROTARY)}")

BACKBONES: dict[str, Callable[..., SpeechBackbone]] = {"DiT": DiT, "UNetT": UNetT, "MMDiT": MMDiT}
_COMMON = {
    "dim", "depth", "heads", "dim_head", "ff_mult", "mel_dim", "text_num_embeds", "text_mask_padding", "qk_norm",
    "attn_mask_enabled", "dropout",
}  # fmt: skip
_OPTIONS: dict[str, set[str]] = {
    "DiT": {"text_dim", "conv_layers", "pe_attn_head", "long_skip_connection"},
    "UNetT": {"text_dim", "conv_layers", "pe_attn_head", "skip_connect_type"},
    "MMDiT": set(),
}
_RENAMED = {"DiT": {"text_embedding_average_upsampling": "text_average_upsampling"}}
_IGNORED_OPTIONS = {"checkpoint_activations", "attn_backend"}  # how the release computes, not what


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened to the tensors of a file: official names, sorted.

    Attributes:
      used: became parameters.
      dropped: counters and buffers that are recomputed.
      missing: the model needs them and they are not there.
      misshaped: ``name: shape, expected shape``.
      unexpected: the model has no use for them.
      nonfinite: hold NaN or infinity.
    """

    used: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()

    @property
    def problems(self) -> list[str]:
        """What keeps the file from being used, each as a few words."""
        return [
            *(f"missing {name}" for name in self.missing),
            *self.misshaped,
            *(f"unexpected {name}" for name in self.unexpected),
            *(f"NaN or infinity in {name}" for name in self.nonfinite),
        ]


class Misfit(ValueError):
    """A checkpoint does not fit the model; ``report`` says how."""

    def __init__(self, report: Report, check: str = "depth, widths and vocabulary"):
        self.report = report
        problems = report.problems
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        super().__init__(f"the checkpoint does not fit the model: {shown}. Check {check}")


def build_kwargs(kwargs: Mapping[str, Any], backbone: str = "DiT") -> dict[str, Any]:
    """Official constructor arguments of a backbone -> those of our class.

    Raises:
      ValueError: the backbone or an argument is not known.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone {backbone!r} is unknown; expected one of {', '.join(BACKBONES)}")
    renamed, known = _RENAMED.get(backbone, {}), _COMMON | _OPTIONS[backbone]
    unknown = sorted(set(kwargs) - known - _IGNORED_OPTIONS - set(renamed))
    if unknown:
        raise ValueError(
            f"model option {unknown[0]!r} is unknown to the F5-TTS {backbone}; known: {', '.join(sorted(known))}"
        )
    given = {renamed.get(key, key): value for key, value in kwargs.items() if key not in _IGNORED_OPTIONS}
    return {"depth": 8, "heads": 8, **given}  # the release's defaults


def network(backbone: str, kwargs: Mapping[str, Any], padding: Padding, **options: Any) -> Functional:
    """The network with these official constructor arguments; ``options`` are our own ones."""
    ours = {**build_kwargs(kwargs, backbone), "padding": padding, **options}
    return functional(lambda rngs: BACKBONES[backbone](**ours, rngs=rngs))


def from_official(tensors: Mapping[str, np.ndarray], abstract: Mapping[str, Any]) -> tuple[dict[str, Any], Report]:
    """Official tensors -> parameters shaped like ``abstract`` (``functional(...).abstract()["params"]``).

    Names may carry the prefix ``ema_model.transformer.``, ``transformer.`` or none.  Tensors are fetched one at a time,
    so that a lazy mapping never has to hold them all.

    Returns:
      ``(params, report)``; numpy arrays in float32.

    Raises:
      Misfit: tensors are missing, left over, misshapen or not finite.
    """
    names = names_of(abstract)
    bare = {_bare(name): name for name in tensors}
    dropped = {name for name in bare if IGNORED.fullmatch(name)}
    params: dict[str, Any] = {}
    used: set[str] = set()
    missing, misshaped, nonfinite = [], [], []
    for path, leaf in flatten(abstract):
        array = np.empty(leaf.shape, np.float32)
        insert(params, path, array)
        rows: Any = array if names.stacked(path) else array[None]
        for row, name in zip(rows, names.official(path, leaf.shape), strict=True):
            if name not in bare:
                missing.append(name)
                continue
            used.add(name)
            wanted, tensor = _view(path, row), np.asarray(tensors[bare[name]])
            if tensor.shape != wanted.shape:
                misshaped.append(f"{name} has shape {tensor.shape}, expected {wanted.shape}")
                continue
            wanted[...] = tensor
            if not np.isfinite(row).all():
                nonfinite.append(name)
    report = Report(
        used=tuple(sorted(used)),
        dropped=tuple(sorted(dropped)),
        missing=tuple(sorted(missing)),
        misshaped=tuple(sorted(misshaped)),
        unexpected=tuple(sorted(set(bare) - used - dropped)),
        nonfinite=tuple(sorted(nonfinite)),
    )
    if report.problems:
        raise Misfit(report)
    return params, report


def to_official(params: Mapping[str, Any], prefix: str = PREFIX) -> dict[str, np.ndarray]:
    """Parameters -> official names and layout; the inverse of ``from_official``."""
    return {prefix + name: np.ascontiguousarray(view) for name, view in _official_views(params)}


def official_shapes(abstract: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Official names, without prefix, and shapes of the tensors of a network that is given abstractly."""
    # broadcast_to: zero strides, so there is no memory behind the shapes
    shaped = {path: np.broadcast_to(np.float16(0), leaf.shape) for path, leaf in flatten(abstract)}
    tree: dict[str, Any] = {}
    for path, array in shaped.items():
        insert(tree, path, array)
    return {name: view.shape for name, view in _official_views(tree)}


def read(file: str | Path, abstract: Mapping[str, Any]) -> tuple[dict[str, Any], Report]:
    """Reads a public ``.safetensors`` checkpoint; see ``from_official``.

    Raises:
      ValueError: the file is not safetensors.
      Misfit: it does not fit the model.
    """
    with TensorFile(file) as tensors:
        try:
            return from_official(tensors, abstract)
        except Misfit as error:
            error.args = (f"{file}: {error}",)
            raise


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of a safetensors file, each read when it is asked for.  A context manager.

    Raises:
      ValueError: the file is not safetensors.
    """

    def __init__(self, file: str | Path):
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(file, framework="numpy")
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(f"{file} is not a safetensors file ({error})") from error
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __enter__(self) -> "TensorFile":
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)


def write(file: str | Path, params: Mapping[str, Any], *, step: int = 0, dim_head: int = 64) -> None:
    """Writes ``params`` as the release does: official names, ``initted``, ``step`` and the rotary buffer.

    The file appears complete or not at all.
    """
    from safetensors.numpy import save_file

    tensors = to_official(params)
    tensors[PREFIX + ROTARY] = rotary_buffer(dim_head)
    tensors["initted"] = np.array(True)
    tensors["step"] = np.array(step, np.int64)
    scratch = Path(file).with_name(f".{Path(file).name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, scratch)
        os.replace(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)


def rotary_buffer(dim_head: int) -> np.ndarray:
    """Frequencies [dim_head / 2] of the rotary positions, bit for bit as the release stores them."""
    exponent = np.arange(0, dim_head, 2, dtype=np.float32) / np.float32(dim_head)
    return np.float32(1) / np.power(10000.0, exponent.astype(np.float64)).astype(np.float32)


def _bare(name: str) -> str:
    for prefix in (PREFIX, "transformer."):
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


def _official_views(params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    names = names_of(params)
    for path, leaf in flatten(params):
        array = np.asarray(leaf)
        rows = array if names.stacked(path) else array[None]
        for name, row in zip(names.official(path, array.shape), rows, strict=True):
            yield name, _view(path, row)


def _view(path: str, row: np.ndarray) -> np.ndarray:
    """One layer's part of a parameter, seen in the official layout."""
    if path.endswith(("grn/gamma", "grn/beta")):
        return row[None, None]
    return row.T if path.endswith("kernel") else row  # [in, out] -> [out, in]; [k, in, out] -> [out, in, k]


def insert(tree: dict[str, Any], path: str, value: np.ndarray) -> None:
    """Puts a leaf into nested dicts."""
    *parents, last = path.split("/")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value
