"""Public detectors and ImageNet backbones <-> our variables.

DiffusionDet names its head ``head.*``, ConsistencyDet ``head_minus.*``; the backbone is ``backbone.bottom_up.*``, the
pyramid ``backbone.fpn_*``, and twelve buffers of the noise schedule are computed again.  Backbones alone come with
torchvision's names (``layer1.0.conv1``), detectron2's (``res2.0.conv1``) or Swin's (``layers.0.blocks.0``); what they
lack is taken fresh.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.convert import f5_tts
from models.convert.f5_names import flatten
from models.convert.numpy_pickle import read_pickle
from models.convert.torch_file import read_torch

BOTTOM_UP = "backbone.bottom_up."
HEADS = ("head.", "head_minus.")
WRAPPERS = ("model", "state_dict")  # what a file may have around the tensors
BUFFERS = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip
# Buffers, counters of batches, and classifiers of ImageNet.
IGNORED = re.compile(
    rf"({'|'.join(BUFFERS)})|.*\.(relative_position_index|attn_mask|num_batches_tracked)"
    rf"|({re.escape(BOTTOM_UP)})?((stem\.)?fc|head|norm)\.(weight|bias)"
)
# What a file with a backbone alone has no tensors for.
FRESH = re.compile(r"(head|fpn)/.*|backbone/norms/.*")
CLASSIFIERS = re.compile(r"head/stages/logits/.*")

LEAVES = {
    "kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var",
    "table": "attn.relative_position_bias_table",
}  # fmt: skip
STACKED = re.compile(r".*/(stages|rest|plain|shifted)/.*")  # the first axis counts layers

_TIME = {"up": 1, "down": 3}
_SUFFIX = {"linear": 0, "norm": 1}
_INSIDE = {
    "attn/out": "self_attn.out_proj",
    "filter/make": "inst_interact.dynamic_layer",
    "filter/out": "inst_interact.out_layer",
    "up": "linear1",
    "down": "linear2",
    "time": "block_time_mlp.1",
    "logits": "class_logits",
    "deltas": "bboxes_delta",
}
_BLOCK = {"attn/out": "attn.proj", "up": "mlp.fc1", "down": "mlp.fc2"}


def _resnet(unit: str, part: str) -> str:
    return unit if part == "conv" else f"{unit}.norm"


# Our path without its leaf -> official name; the number is that of the layer along the first axis.
NAMES: list[tuple[str, Callable[[re.Match[str], int], str]]] = [
    (r"head/time/(up|down)", lambda m, i: f"head.time_mlp.{_TIME[m[1]]}"),
    (r"head/stages/attn/([qkv])", lambda m, i: f"head.head_series.{i}.self_attn.{m[1]}"),
    (r"head/stages/filter/(norm\d)", lambda m, i: f"head.head_series.{i}.inst_interact.{m[1]}"),
    (r"head/stages/(norm\d)", lambda m, i: f"head.head_series.{i}.{m[1]}"),
    (
        r"head/stages/(cls|reg)/(\d+)/(linear|norm)",
        lambda m, i: f"head.head_series.{i}.{m[1]}_module.{3 * int(m[2]) + _SUFFIX[m[3]]}",
    ),
    (r"head/stages/(.+)", lambda m, i: f"head.head_series.{i}.{_INSIDE[m[1]]}"),
    (r"fpn/(lateral|output)/(\d+)", lambda m, i: f"backbone.fpn_{m[1]}{int(m[2]) + 2}"),
    (r"backbone/stem/(conv|norm)", lambda m, i: f"{BOTTOM_UP}stem.{_resnet('conv1', m[1])}"),
    (r"backbone/(res\d)/first/(\w+)/(conv|norm)", lambda m, i: f"{BOTTOM_UP}{m[1]}.0.{_resnet(m[2], m[3])}"),
    (r"backbone/(res\d)/rest/(\w+)/(conv|norm)", lambda m, i: f"{BOTTOM_UP}{m[1]}.{i + 1}.{_resnet(m[2], m[3])}"),
    (r"backbone/patch", lambda m, i: f"{BOTTOM_UP}patch_embed.proj"),
    (r"backbone/patch_norm", lambda m, i: f"{BOTTOM_UP}patch_embed.norm"),
    (r"backbone/norms/(\d+)", lambda m, i: f"{BOTTOM_UP}norm{m[1]}"),
    (r"backbone/merges/(\d+)/norm", lambda m, i: f"{BOTTOM_UP}layers.{m[1]}.downsample.norm"),
    (r"backbone/merges/(\d+)/reduce", lambda m, i: f"{BOTTOM_UP}layers.{m[1]}.downsample.reduction"),
    (r"backbone/layers/(\d+)/(plain|shifted)(?:/(.+))?", lambda m, i: _swin(m, i)),
]


def _swin(match: re.Match[str], pair: int) -> str:
    layer, which, part = match.groups()
    block = f"{BOTTOM_UP}layers.{layer}.blocks.{2 * pair + (which == 'shifted')}"
    return block if part is None else f"{block}.{_BLOCK.get(part, part.replace('/', '.'))}"


# Names of torchvision's ResNets -> detectron2's.
_TORCHVISION = [
    (r"conv1", "stem.conv1"),
    (r"bn1", "stem.conv1.norm"),
    (r"layer(\d)\.(\d+)\.conv(\d)", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}"),
    (r"layer(\d)\.(\d+)\.bn(\d)", lambda m: f"res{int(m[1]) + 1}.{m[2]}.conv{m[3]}.norm"),
    (r"layer(\d)\.(\d+)\.downsample\.0", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut"),
    (r"layer(\d)\.(\d+)\.downsample\.1", lambda m: f"res{int(m[1]) + 1}.{m[2]}.shortcut.norm"),
]


@dataclasses.dataclass(frozen=True)
class Report(f5_tts.Report):
    """What happened to the tensors of a file: official names, sorted.

    Attributes:
      fresh: not taken from the file; they start as in a new model.
    """

    fresh: tuple[str, ...] = ()


def load(file: str | Path) -> Mapping[str, np.ndarray]:
    """The tensors of a ``.safetensors`` file, of what ``torch.save`` wrote, or of detectron2's ``.pkl``.

    Raises:
      ValueError: the file is none of these, or holds no state dict.
    """
    suffix = Path(file).suffix
    if suffix == ".safetensors":
        with f5_tts.TensorFile(file) as lazy:
            return dict(lazy)
    tensors = read_pickle(file) if suffix == ".pkl" else read_torch(file)
    for name in WRAPPERS:
        if isinstance(tensors, Mapping) and isinstance(tensors.get(name), Mapping):
            tensors = tensors[name]
    if not isinstance(tensors, Mapping) or not all(isinstance(a, np.ndarray) for a in tensors.values()):
        raise ValueError(f"{file} holds no state dict; expected tensors by name, or that under {' or '.join(WRAPPERS)}")
    return tensors


def num_classes(tensors: Mapping[str, np.ndarray]) -> int | None:
    """Of the detector that these are of; None for a backbone alone."""
    found = (len(array) for name, array in tensors.items() if name.endswith(".0.class_logits.weight"))
    return next(found, None)


def from_official(
    tensors: Mapping[str, np.ndarray],
    abstract: Mapping[str, Any],
    fresh: Callable[[], Any] | None = None,
    *,
    new_classes: bool = False,
) -> tuple[dict[str, Any], Report]:
    """Official tensors -> variables shaped like ``abstract`` (``functional(...).abstract()``), float32.

    Args:
      tensors: of a detector, or of a backbone alone.
      fresh: makes new variables; asked for what a backbone alone does not have.  None = such a file does not fit.
      new_classes: the classifiers are taken from ``fresh`` as well, because the file's are of other classes.

    Returns:
      ``({"params", "stats"}, report)``.

    Raises:
      Misfit: tensors are missing, left over, misshapen or not finite.
    """
    given = _canonical(tensors)
    dropped = {name for name in given if IGNORED.fullmatch(name) or (new_classes and ".class_logits." in name)}
    alone = not any(name.startswith("head.head_series.") for name in given)
    absent = FRESH if alone else CLASSIFIERS if new_classes else None
    fallback = dict(flatten(fresh())) if fresh and absent else {}
    variables: dict[str, Any] = {"params": {}, "stats": {}}
    used, missing, misshaped, nonfinite, invented = set(), [], [], [], []
    for path, leaf in flatten(abstract):
        array = np.empty(leaf.shape, np.float32)
        f5_tts.insert(variables, path, array)
        inner = path.split("/", 1)[1]
        names = official_names(inner, leaf.shape)
        if fallback and absent and absent.fullmatch(inner):
            array[...] = fallback[path]
            invented += names
            continue
        rows: Any = array if STACKED.fullmatch(inner) else array[None]
        for row, name in zip(rows, names, strict=True):
            if name not in given:
                missing.append(name)
                continue
            used.add(name)
            wanted, tensor = _view(inner, row), given[name]()
            if tensor.shape != wanted.shape:
                misshaped.append(f"{name} has shape {tensor.shape}, expected {wanted.shape}")
                continue
            wanted[...] = tensor
            if not np.isfinite(row).all():
                nonfinite.append(name)
    left = set(given) - used - dropped
    found = (used, dropped, missing, misshaped, left, nonfinite, invented)
    report = Report(*(tuple(sorted(names)) for names in found))
    if report.problems:
        raise f5_tts.Misfit(report, "backbone, number of stages and of classes, widths")
    return variables, report


def to_official(variables: Mapping[str, Any], head: str = HEADS[0]) -> dict[str, np.ndarray]:
    """Variables -> official names and layout without buffers; the inverse of ``from_official``.

    Args:
      head: prefix of the head's tensors.
    """
    named: dict[str, np.ndarray] = {}
    for path, leaf in flatten(variables):
        path, array = path.split("/", 1)[1], np.asarray(leaf)
        rows = array if STACKED.fullmatch(path) else array[None]
        for name, row in zip(official_names(path, array.shape), rows, strict=True):
            named[name] = _view(path, row)
    out: dict[str, np.ndarray] = {}
    for name, view in named.items():
        if match := re.fullmatch(r"(.+attn)\.([qkv])\.(weight|bias)", name):
            parent, part, leaf = match.groups()
            if part == "q":
                parts = [named[f"{parent}.{part}.{leaf}"] for part in "qkv"]
                out[f"{parent}.{_packed(parent)}{leaf}"] = np.concatenate(parts)
        else:
            out[name] = np.ascontiguousarray(view)
    return {re.sub(r"^head\.", head, name): array for name, array in out.items()}


def official_names(path: str, shape: tuple[int, ...]) -> list[str]:
    """The official names behind one of our variables, one per layer; those of q, k and v are parts of a packed tensor.

    Raises:
      ValueError: no detector that we convert has such a variable.
    """
    parent, leaf = path.rsplit("/", 1)
    for pattern, name in NAMES:
        if match := re.fullmatch(pattern, parent):
            count = shape[0] if STACKED.fullmatch(path) else 1
            return [f"{name(match, i)}.{LEAVES[leaf]}" for i in range(count)]
    raise ValueError(f"there is no public name for the variable {path}")


def _canonical(tensors: Mapping[str, np.ndarray]) -> dict[str, Callable[[], np.ndarray]]:
    """One way of naming for every kind of file, q, k and v apart; tensors are fetched when they are called for."""
    torchvision = any(name.startswith("layer1.") for name in tensors)
    detector = any(name.startswith("backbone.") or ".head_series." in name for name in tensors)
    minus = not any(name.startswith("head.head_series.") for name in tensors)
    out: dict[str, Callable[[], np.ndarray]] = {}
    for original in tensors:
        name = _torchvision(original) if torchvision else original
        if minus and name.startswith(HEADS[1]):
            name = f"head.{name.removeprefix(HEADS[1])}"
        elif not detector or torchvision:
            name = BOTTOM_UP + name
        if match := re.fullmatch(r"(.+)\.(in_proj_|qkv\.)(weight|bias)", name):
            for i, part in enumerate("qkv"):
                fetch = functools.partial(lambda name, i: np.split(np.asarray(tensors[name]), 3)[i], original, i)
                out[f"{match[1]}.{part}.{match[3]}"] = fetch
        else:
            out[name] = functools.partial(lambda name: np.asarray(tensors[name]), original)
    return out


def _torchvision(name: str) -> str:
    parent, _, leaf = name.rpartition(".")
    for pattern, replacement in _TORCHVISION:
        if match := re.fullmatch(pattern, parent):
            return f"{replacement if isinstance(replacement, str) else replacement(match)}.{leaf}"
    return name


def _packed(parent: str) -> str:
    return "in_proj_" if parent.endswith("self_attn") else "qkv."


def _view(path: str, row: np.ndarray) -> np.ndarray:
    """One layer's part of a variable, seen in the official layout."""
    if not path.endswith("kernel"):
        return row
    return row.transpose(3, 2, 0, 1) if row.ndim == 4 else row.T  # [h, w, in, out] -> [out, in, h, w]
