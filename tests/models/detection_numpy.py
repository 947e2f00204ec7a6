"""The public backbones in plain numpy, float64, written from tensor names and papers alone; channels first."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Tensors = Mapping[str, np.ndarray]
BOTTOM_UP = "backbone.bottom_up."


def conv(x: np.ndarray, t: Tensors, name: str, stride: int = 1, pad: int | None = None) -> np.ndarray:
    """x [b, c, h, w]."""
    weight = t[f"{name}.weight"].astype(np.float64)
    width = weight.shape[-1]
    pad = width // 2 if pad is None else pad
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(x, (width, width), (2, 3))[:, :, ::stride, ::stride]
    out = np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True)
    return out + t[f"{name}.bias"][:, None, None] if f"{name}.bias" in t else out


def conv_norm(x: np.ndarray, t: Tensors, name: str, stride: int = 1) -> np.ndarray:
    x = conv(x, t, name, stride)
    weight, bias, mean, var = (
        t[f"{name}.norm.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def resnet(images: np.ndarray, t: Tensors) -> list[np.ndarray]:
    x = np.maximum(conv_norm(images, t, f"{BOTTOM_UP}stem.conv1", 2), 0)
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    x, out = sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max((-1, -2)), []
    for stage in range(2, 6):
        for block in range(99):
            name = f"{BOTTOM_UP}res{stage}.{block}"
            if f"{name}.conv1.weight" not in t:
                break
            stride = 2 if stage > 2 and block == 0 else 1
            y = np.maximum(conv_norm(x, t, f"{name}.conv1"), 0)
            y = np.maximum(conv_norm(y, t, f"{name}.conv2", stride), 0)
            short = conv_norm(x, t, f"{name}.shortcut", stride) if f"{name}.shortcut.weight" in t else x
            x = np.maximum(conv_norm(y, t, f"{name}.conv3") + short, 0)
            out = [*out[: stage - 2], x]
    return out


def norm(x: np.ndarray, t: Tensors, name: str) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * t[f"{name}.weight"] + t[f"{name}.bias"]


def linear(x: np.ndarray, t: Tensors, name: str) -> np.ndarray:
    return x @ t[f"{name}.weight"].T.astype(np.float64) + t.get(f"{name}.bias", 0)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def windowed(x: np.ndarray, t: Tensors, name: str, window: int, heads: int, shift: int) -> np.ndarray:
    """Attention of [h, w, c] normed cells: pad with zeros, roll, attend by window under the mask of regions, undo."""
    h, w, c = x.shape
    x = np.pad(x, ((0, -h % window), (0, -w % window), (0, 0)))
    rows, columns = x.shape[:2]
    region = np.zeros((rows, columns))
    cuts = [slice(0, -window), slice(-window, -shift), slice(-shift, None)] if shift else [slice(None)]
    for i, a in enumerate(cuts):
        for j, b in enumerate(cuts):
            region[a, b] = 3 * i + j
    x, out = np.roll(x, (-shift, -shift), (0, 1)), np.zeros((rows, columns, c))
    place = np.array([(i, j) for i in range(window) for j in range(window)])
    apart = place[:, None] - place + window - 1
    bias = t[f"{name}.relative_position_bias_table"][apart[..., 0] * (2 * window - 1) + apart[..., 1]]
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            here = (slice(top, top + window), slice(left, left + window))
            parts = linear(x[here].reshape(-1, c), t, f"{name}.qkv").reshape(window**2, 3, heads, c // heads)
            same = region[here].reshape(-1, 1) == region[here].reshape(1, -1)
            found = []
            for head in range(heads):
                q, k, v = parts[:, :, head].transpose(1, 0, 2)
                score = q @ k.T / np.sqrt(c // heads) + bias[..., head] + np.where(same, 0, -100)
                score = np.exp(score - score.max(-1, keepdims=True))
                found.append(score / score.sum(-1, keepdims=True) @ v)
            out[here] = linear(np.concatenate(found, -1), t, f"{name}.proj").reshape(window, window, c)
    return np.roll(out, (shift, shift), (0, 1))[:h, :w]


def swin(images: np.ndarray, t: Tensors, heads: tuple[int, ...], window: int) -> list[np.ndarray]:
    """One image, [1, 3, h, w]."""
    patches = conv(images, t, f"{BOTTOM_UP}patch_embed.proj", stride=4, pad=0)
    x, out = norm(patches[0].transpose(1, 2, 0), t, f"{BOTTOM_UP}patch_embed.norm"), []
    for layer, count in enumerate(heads):
        name = f"{BOTTOM_UP}layers.{layer}"
        for number in range(99):
            block = f"{name}.blocks.{number}"
            if f"{block}.norm1.weight" not in t:
                break
            shift = window // 2 if number % 2 else 0
            x = x + windowed(norm(x, t, f"{block}.norm1"), t, f"{block}.attn", window, count, shift)
            y = linear(norm(x, t, f"{block}.norm2"), t, f"{block}.mlp.fc1")
            x = x + linear(gelu(y), t, f"{block}.mlp.fc2")
        out.append(norm(x, t, f"{BOTTOM_UP}norm{layer}").transpose(2, 0, 1)[None])
        if f"{name}.downsample.norm.weight" in t:
            x = np.pad(x, ((0, x.shape[0] % 2), (0, x.shape[1] % 2), (0, 0)))
            x = np.concatenate([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], -1)
            x = linear(norm(x, t, f"{name}.downsample.norm"), t, f"{name}.downsample.reduction")
    return out


def fpn(maps: list[np.ndarray], t: Tensors) -> list[np.ndarray]:
    out, above = [], None
    for i, x in reversed(list(enumerate(maps, 2))):
        x = conv(x, t, f"backbone.fpn_lateral{i}")
        if above is not None:
            x = x + above.repeat(2, 2).repeat(2, 3)[:, :, : x.shape[2], : x.shape[3]]
        above = x
        out.insert(0, conv(x, t, f"backbone.fpn_output{i}"))
    return out
