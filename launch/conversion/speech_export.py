"""A speech model of ours as files for other programs, the reference above all."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.audio import load_mel
from data.errors import UserError
from data.text import Tokenizer
from launch.conversion.folder import write_folder
from models.convert import f5_tts
from train import trees
from train.checkpoint import restore_variables
from train.components import bind, build
from train.tasks.speech import DURATION
from train.workdir import ASSETS, read_config

# What the release computes without being asked: options of ours that its file cannot carry have to be at these values.
FIXED: dict[tuple[str, str], Any] = {
    ("task", "normalise"): False,
    ("task", "prediction"): "velocity",
    ("model", "conv_pos_kernel"): 31,
    ("model", "conv_pos_groups"): 16,
}


class Exported:
    """The parameters of a run folder, checked.

    Raises:
      UserError: no such folder, no such parameters, or NaN or infinity in them.
    """

    def __init__(self, workdir: str | Path, params: str = "ema"):
        self.config = read_config(workdir)
        if not str(self.config.get("task", {}).get("type", "")).startswith("train.tasks.speech:"):
            raise UserError(f"{workdir} is not a run of speech; only those can be exported yet")
        self.assets = Path(workdir) / ASSETS
        self.spec, self.mean, self.std = load_mel(self.assets)
        self.tokenizer = Tokenizer.load(self.assets)
        model = bind(self.config["model"], "model")
        task = build(self.config["task"], "task", model=model, assets=str(self.assets), shapes=())
        self.variables, meta = restore_variables(workdir, task.abstract(), params=params)
        self.step = int(meta["step"])
        self.flat = {path: np.asarray(leaf) for path, leaf in trees.flatten(self.variables["params"]).items()}
        wrong = [path for path, leaf in self.flat.items() if not np.isfinite(leaf).all()]
        if wrong:
            raise UserError(f"{workdir}: {wrong[0]} holds NaN or infinity; nothing is exported")


def export_public(source: Exported, out: Path) -> list[str]:
    """``model_<step>.safetensors`` with the release's names, shapes and types, and its ``vocab.txt``.

    Raises:
      UserError: the run has options that the reference does not.
    """
    values = source.config
    for (section, key), wanted in FIXED.items():
        found = _option(values, section, key)
        if found is not None and found != wanted:
            raise UserError(
                f"config.{section}.{key} is {found!r}: the reference knows only {wanted!r}, so its files cannot hold "
                "this model; use --format=safetensors"
            )
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"model_{source.step}.safetensors"
    network = {name: part for name, part in source.variables["params"].items() if name != DURATION}
    f5_tts.write(file, network, step=source.step, dim_head=values["model"].get("dim_head", 64))
    lines = [f"{file}: {len(f5_tts.official_shapes(network)) + 3} tensors"]
    if DURATION in source.variables["params"]:
        lines.append("left out: the duration predictor, which the reference does not have")
    if source.tokenizer.kind != "byte":
        vocab = out / "vocab.txt"
        _replace(vocab, "".join(f"{symbol}\n" for symbol in source.tokenizer.symbols))
        lines.append(f"{vocab}: {source.tokenizer.size} symbols")
    model = {_SHARED[key]: value for key, value in values["model"].items() if key in _SHARED and value is not None}
    lines.append(f"the reference needs, in its own config: {json.dumps(model)}; mel type {source.spec.kind}")
    return lines


_SHARED = {key: key for key in (
    "dim", "depth", "heads", "ff_mult", "text_dim", "conv_layers", "text_mask_padding", "pe_attn_head", "qk_norm",
    "skip_connect_type", "long_skip_connection",
)} | {"text_average_upsampling": "text_embedding_average_upsampling"}  # fmt: skip


def export_safetensors(source: Exported, out: Path) -> list[str]:
    """``params.safetensors`` under our own paths, the config in its metadata."""
    from safetensors.numpy import save_file

    out.mkdir(parents=True, exist_ok=True)
    file = out / "params.safetensors"
    scratch = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    about = {"config": json.dumps(source.config), "step": str(source.step)}
    try:
        save_file({path: np.ascontiguousarray(leaf) for path, leaf in source.flat.items()}, scratch, about)
        os.replace(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)
    return [f"{file}: {len(source.flat)} tensors"]


def export_params(source: Exported, out: Path) -> list[str]:
    """A folder like that of a converted checkpoint: config, assets, one set of parameters."""

    def write_assets(folder: Path) -> None:
        shutil.copytree(source.assets, folder, dirs_exist_ok=True)

    write_folder(out, source.config, write_assets, source.variables, source.step)
    return [f"{out}: {sum(leaf.size for leaf in source.flat.values()):,} parameters, checkpoint {source.step}"]


def _option(values: Mapping[str, Any], section: str, key: str) -> Any:
    return values.get(section, {}).get(key)


def _replace(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
