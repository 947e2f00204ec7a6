"""A public vocoder's weights as a folder that ``launch.pipelines.vocoders.load_vocoder`` takes."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from data.audio import MelSpec, save_mel
from data.errors import UserError
from launch.conversion.folder import check_new, write_folder
from models.convert import vocoders
from models.functional import functional
from train.assemble import plain
from train.components import bind


def convert_vocoder(config: Mapping[str, Any], checkpoint: str, out: str) -> list[str]:
    """Reads ``checkpoint`` as the network of ``config`` and writes the folder ``out``.

    Args:
      config: of a released variant, such as ``configs/vocos.py:mel_24khz``.
      checkpoint: ``pytorch_model.bin`` of Vocos, ``bigvgan_generator.pt`` of BigVGAN, or a ``.safetensors`` file.

    Returns:
      The report, line by line.

    Raises:
      UserError: anything that does not fit; nothing is written then.
    """
    target = check_new(out)
    if not Path(checkpoint).is_file():
        raise UserError(f"--checkpoint={checkpoint}: no such file")
    values: dict[str, Any] = json.loads(json.dumps(plain(config)))
    values["task"]["adversarial_from"] = -1  # the releases keep their discriminators
    values["optim"]["groups"] = {}
    spec = MelSpec(**values["data"]["mel"])
    model = bind(values["model"], "model")
    sizes = {"mel_dim": spec.n_mels, "n_fft": spec.n_fft, "hop": spec.hop}
    abstract = functional(lambda rngs: model(**sizes, rngs=rngs)).abstract()["params"]
    try:
        params, report = vocoders.read(checkpoint, abstract)
    except ValueError as error:
        raise UserError(str(error)) from error
    about = {"checkpoint": Path(checkpoint).name, **dataclasses.asdict(report)}

    def write_assets(folder: Path) -> None:
        save_mel(folder, spec)
        (folder / "conversion.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    write_folder(target, values, write_assets, {"params": {"generator": params}, "stats": {}}, step=0)
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract))
    dropped = ", ".join(report.dropped) if len(report.dropped) < 5 else f"{len(report.dropped)} buffers"
    return [
        f"used {len(report.used)} tensors, {count:,} parameters; dropped {dropped or 'nothing'}; missing 0",
        f"mel type {spec.kind}; wrote {out}",
    ]
