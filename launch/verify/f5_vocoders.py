"""F5-TTS golden rows of Vocos: features, spectrum and wave of every vocoder in the folder's config."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.audio import MelSpec, window
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report
from models.convert import vocoders
from models.functional import Functional, functional
from models.vocoders.vocos import Vocos

FORWARD = 2e-5
AUDIO = 1e-6
EXTRA_PADDING = 5  # frames added for the exact rows


def check(folder: GoldenFolder, report: Report) -> None:
    """Every ``<name>.npz`` whose name is a key of ``vocos`` in config.json."""
    for name, options in folder.config.get("vocos", {}).items():
        if folder.has(f"{name}.npz"):
            with report.guard(f"{name}.npz", "exact"):
                vocos(name, options, folder, report)


def network(options: dict[str, Any]) -> Functional:
    """Vocos by the constructor arguments of the release's parts."""
    sizes = {
        "mel_dim": options["input_channels"],
        "n_fft": options["n_fft"],
        "hop": options["hop_length"],
        "dim": options["dim"],
        "hidden": options["intermediate_dim"],
        "depth": options["num_layers"],
        "padding": options["padding"],
    }
    return functional(lambda rngs: Vocos(**sizes, rngs=rngs))


def vocos(name: str, options: dict[str, Any], folder: GoldenFolder, report: Report) -> None:
    """The stored batch; and its wave again with padding that no row may notice."""
    stored, model = folder.arrays(f"{name}.npz"), network(options)
    params, _ = vocoders.read(folder.file(f"{name}.safetensors"), model.abstract()["params"])
    variables = {"params": jax.tree.map(jnp.asarray, params), "stats": {}}
    mel = stored["features"].transpose(0, 2, 1)
    rows, frames, _ = mel.shape
    hann = window(MelSpec(n_fft=options["n_fft"], hop=options["hop_length"], win=options["n_fft"]))

    def call(method: str, *args: Any) -> np.ndarray:
        return np.asarray(jax.jit(lambda v, *a: model.apply(v, *a, method=method)[0])(variables, *args))

    for key in stored:
        where = f"{name}.npz:{key}"
        if key == "backbone_out":
            report.close(where, "exact", call("backbone", mel), stored[key], FORWARD)
        elif key.startswith("head_linear_out"):
            count = stored[key].shape[1]
            report.close(where, "exact", call("coefficients", mel)[:, :count], stored[key], FORWARD)
        elif key == "audio":
            lengths = np.full(rows, frames)
            report.close(where, "exact", call("__call__", mel, lengths, hann), stored[key], AUDIO)
            padded = np.pad(mel, ((0, 0), (0, EXTRA_PADDING), (0, 0)), constant_values=3.0)
            waves = call("__call__", padded, lengths, hann)[:, : stored[key].shape[1]]
            report.close(f"{where} padded", "exact", waves, stored[key], AUDIO)
