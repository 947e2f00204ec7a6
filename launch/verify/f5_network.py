"""F5-TTS golden rows of the network: batched forward passes, and rows that must equal their unpadded selves."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.errors import UserError
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report
from models.convert import f5_tts
from models.functional import Functional, Variables
from models.layers.backbone import Padding

FORWARD = 2e-5  # outputs reach 4; the reference itself is 5e-6 away from float64
SCALAR_TIME = 0.25  # of the `scalar_time` cases
EXTRA_PADDING = 13  # frames and symbols added to the padded batch, so that it is no batch the reference ever saw


class Variants:
    """The models of a golden folder, built from its config.json and weight files."""

    def __init__(self, folder: GoldenFolder):
        self._folder = folder
        self.known = {n: v for n, v in folder.config["variants"].items() if v["backbone"] in f5_tts.BACKBONES}
        self.unknown = {n: v["backbone"] for n, v in folder.config["variants"].items() if n not in self.known}

    @functools.cache  # noqa: B019, lives as long as one verification
    def model(self, variant: str, padding: Padding) -> Functional:
        """The network of a variant; ``padding`` is "exact" or "reference"."""
        about = self.known[variant]
        return f5_tts.network(about["backbone"], about["kwargs"], padding)

    @functools.cache  # noqa: B019
    def variables(self, variant: str) -> Variables:
        """The golden weights as our parameters."""
        file = self._folder.file(self.known[variant]["weights"])
        if not file.is_file():
            raise UserError(f"{file} is missing; config.json names it as the weights of {variant}")
        params, _ = f5_tts.read(file, self.model(variant, "reference").abstract()["params"])
        return {"params": params, "stats": {}}

    def named(self, name: str) -> str | None:
        """The variant that ``name`` is, or starts with (``dit_v1_keep``); the longest one."""
        fitting = [v for v in self.known if name == v or name.startswith(f"{v}_")]
        return max(fitting, key=len, default=None)


def check(folder: GoldenFolder, variants: Variants, report: Report) -> None:
    """All ``forward_<variant>.npz`` and ``single_<variant>.npz``, and the mask of their inputs."""
    for name, _ in folder.names(r"inputs\.npz"):
        with report.guard(name):
            inputs = folder.arrays(name)
            frames = np.arange(inputs["x"].shape[1])
            report.equal(f"{name}:mask", inputs["mask"], frames < inputs["lens"][:, None])
    for name, match in folder.names(r"forward_(.+)\.npz"):
        if match[1] in variants.known:
            with report.guard(name, "reference"):
                forward(folder, variants, match[1], report)
    for name, match in folder.names(r"single_(.+)\.npz"):
        if match[1] in variants.known:
            with report.guard(name, "exact"):
                single(folder, variants, match[1], report)


def forward(folder: GoldenFolder, variants: Variants, variant: str, report: Report) -> None:
    """Every case of one variant, and what its parts put out on the way."""
    file, inputs = f"forward_{variant}.npz", folder.arrays("inputs.npz")
    stored = folder.arrays(file)
    model, variables = variants.model(variant, "reference"), variants.variables(variant)
    cases = {key: case for key in stored if (case := _case(key.removeprefix("out__"), inputs)) is not None}
    # One large batch of those that pad alike; only MMDiT's text is not padded to the frames anyway.
    alone = variants.known[variant]["backbone"] == "MMDiT"
    batches: dict[Any, dict[str, Any]] = {}
    for key, case in cases.items():
        width = case["text"].shape[1] if alone else 0
        batches.setdefault((case["lengths"] is not None, width), {})[key] = case
    for (masked, _), group in batches.items():
        widest = max(case["text"].shape[1] for case in group.values())
        for case in group.values():
            case["text"] = np.pad(case["text"], ((0, 0), (0, widest - case["text"].shape[1])), constant_values=-1)
        batch = {k: np.concatenate([case[k] for case in group.values()]) for k in _ARGS if k != "lengths" or masked}
        out = np.asarray(jax.jit(lambda v, kw: model.apply(v, **kw)[0])(variables, batch))
        for key, rows in zip(group, np.split(out, np.cumsum([len(c["x"]) for c in group.values()])[:-1]), strict=True):
            report.close(f"{file}:{key}", "reference", rows, stored[key], FORWARD)
    if any(key.startswith("inter__") for key in stored):
        got = intermediates(model, variables, inputs)
        for key in stored:
            if (name := key.removeprefix("inter__")) != key and name in got:
                report.close(f"{file}:{key}", "reference", got[name], stored[key], FORWARD)


def intermediates(model: Functional, variables: Variables, inputs: Any) -> dict[str, Any]:
    """What the parts put out in the ``mask`` case, by the release's names of the parts."""

    @jax.jit
    def run(variables: Any) -> Any:
        frames = inputs["x"].shape[1]
        encoded, _ = model.apply(variables, inputs["text"], inputs["lens"], frames, method="encode_text")
        args = inputs["x"], inputs["cond"], encoded, inputs["time"], inputs["lens"]
        return encoded, model.apply(variables, *args, method="parts", keep_layers=True)[0]

    encoded, found = run(variables)
    return {
        "time_embed": found["time"],
        "text_embed": jax.tree.leaves(encoded)[0],
        "input_embed": found["input"],
        "audio_embed": found["input"],
        "long_skip_connection": found.get("long_skip"),
        "norm_out": found["norm"],
        **{f"transformer_blocks.{i}": layer for i, layer in enumerate(found["layers"])},
        **{f"layers.{i}.4": layer for i, layer in enumerate(found["layers"])},
    }


_ARGS = ("x", "cond", "text", "time", "lengths", "drop_audio", "drop_text")


def _case(name: str, inputs: Any) -> dict[str, Any] | None:
    """Arguments of the network for a case name such as ``mask_dropboth``; None if a word of it is unknown."""
    mask, *words = name.split("_", 1)
    option = words[0] if words else ""
    options = ("", "dropaudio", "droptext", "dropboth", "cfginfer", "scalar_time", "longtext")
    if mask not in ("mask", "nomask") or option not in options:
        return None
    rows = len(inputs["x"])
    case = {
        "x": inputs["x"],
        "cond": inputs["cond"],
        "text": inputs["longtext" if option == "longtext" else "text"],
        "time": np.full(rows, SCALAR_TIME, np.float32) if option == "scalar_time" else inputs["time"],
        "lengths": inputs["lens"] if mask == "mask" else None,
        "drop_audio": np.full(rows, option in ("dropaudio", "dropboth")),
        "drop_text": np.full(rows, option in ("droptext", "dropboth")),
    }
    if option == "cfginfer":  # conditional rows first, then the same rows with everything dropped
        case = {k: None if v is None else np.concatenate([v, v]) for k, v in case.items()}
        case["drop_audio"] = case["drop_text"] = np.arange(2 * rows) >= rows
    return case


def single(folder: GoldenFolder, variants: Variants, variant: str, report: Report) -> None:
    """Rows run alone by the reference, met by a padded batch in exact mode."""
    file, inputs = f"single_{variant}.npz", folder.arrays("inputs.npz")
    stored = folder.arrays(file)
    model, variables = variants.model(variant, "exact"), variants.variables(variant)
    lengths = np.asarray(inputs["lens"])
    pad = ((0, 0), (0, EXTRA_PADDING), (0, 0))
    x, cond = np.pad(inputs["x"], pad, constant_values=7.0), np.pad(inputs["cond"], pad, constant_values=-5.0)
    text = np.pad(inputs["text"], ((0, 0), (0, EXTRA_PADDING)), constant_values=-1)
    apply = jax.jit(lambda v, drop: model.apply(v, x, cond, text, inputs["time"], lengths, drop, drop)[0])
    outputs = {
        "cond": apply(variables, jnp.zeros(len(x), bool)),
        "uncond": apply(variables, jnp.ones(len(x), bool)),
    }
    for key in stored:
        kind, _, row = key.partition("_row")
        if kind in outputs and row.isdecimal() and int(row) < len(x):
            i = int(row)
            report.close(f"{file}:{key}", "exact", outputs[kind][i, : lengths[i]], stored[key], FORWARD)
