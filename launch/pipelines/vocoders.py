"""Vocoders behind one interface: log-mel frames in, waves out.

    vocoder = load_vocoder(None, spec)  # Griffin-Lim, which needs no weights
    waves = vocoder(mel, lengths, keys)

Padding changes no row, so callers may bucket frames and rows as they like.
"""

import functools
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from data.audio import MelSpec, filterbank, load_mel, window
from data.errors import UserError
from models.vocoders import griffin_lim
from train.checkpoint import restore_variables
from train.components import bind, build
from train.task import Variables
from train.tasks.vocoder import VocoderTask
from train.workdir import ASSETS, read_config


class Vocoder(Protocol):
    """Turns the log-mel of one ``MelSpec`` into sound."""

    def __call__(self, mel: ArrayLike, lengths: ArrayLike, keys: jax.Array) -> jax.Array:
        """Waves of a padded batch.

        Args:
          mel: [b, t, m] natural log-mel, float32; anything past a row's length is ignored.
          lengths: [b] int32, frames of each row.
          keys: [b] PRNG keys, for vocoders that draw something.

        Returns:
          [b, samples(t)] float32; row i equals that row alone and is zero from ``samples(lengths[i])`` on.
        """
        ...

    def samples(self, frames: int) -> int:
        """Samples of a row with that many frames."""
        ...


class GriffinLim:
    """The vocoder without weights (``models.vocoders.griffin_lim``)."""

    def __init__(self, spec: MelSpec):
        self.spec = spec
        options = {"hop": spec.hop, "pad": spec.padding}
        self._vocode = functools.partial(
            griffin_lim.vocode, window=window(spec), filterbank=filterbank(spec), **options
        )

    def __call__(self, mel: ArrayLike, lengths: ArrayLike, keys: jax.Array) -> jax.Array:
        """See ``Vocoder``; ``keys`` are those of the first phases."""
        return self._vocode(jnp.asarray(mel), jnp.asarray(lengths), keys)

    def samples(self, frames: int) -> int:
        """See ``Vocoder``."""
        return self.spec.hop * (frames - 1) + self.spec.n_fft - 2 * self.spec.padding


class LearnedVocoder:
    """A trained network with its parameters; compiled once per shape."""

    def __init__(self, task: VocoderTask, variables: Variables):
        self.task, self._generator = task, variables["params"]["generator"]
        self._vocode = jax.jit(task.vocode)

    def __call__(self, mel: ArrayLike, lengths: ArrayLike, keys: jax.Array) -> jax.Array:
        """See ``Vocoder``; nothing is drawn."""
        del keys
        return self._vocode(self._generator, jnp.asarray(mel), jnp.asarray(lengths))

    def samples(self, frames: int) -> int:
        """See ``Vocoder``."""
        return self.task.samples(frames)


def load_vocoder(where: str | Path | None, spec: MelSpec) -> Vocoder:
    """The vocoder of a converted or trained folder, or Griffin-Lim for None.

    Args:
      where: folder with config.json, assets/mel.json and checkpoints/.
      spec: the mel that it will be given.

    Raises:
      UserError: not such a folder, or its vocoder inverts another kind of mel.
    """
    if where is None:
        return GriffinLim(spec)
    config = read_config(where)
    assets = Path(where) / ASSETS
    own, _, _ = load_mel(assets)
    wanted = spec.to_dict()
    for key, value in own.to_dict().items():
        if value != wanted[key]:
            raise UserError(
                f"{where}: this vocoder is for another mel, with {key} {value!r} where the model has {wanted[key]!r}; "
                "use one for the model's mel type, or none for Griffin-Lim"
            )
    for section in ("task", "model"):
        if section not in config:
            raise UserError(f"{Path(where) / 'config.json'} has no section {section!r}; expected a vocoder's")
    precision = config.get("precision", {}).get("compute", "float32")
    parts = {"model": bind(config["model"], "model"), "assets": str(assets), "precision": precision}
    task = build(config["task"], "task", shapes=(), **parts)
    if not isinstance(task, VocoderTask):
        raise UserError(
            f"{where} is a run of {type(task).__name__}; expected a vocoder, such as configs/vocos.py trains"
        )
    variables, _ = restore_variables(where, task.abstract())
    return LearnedVocoder(task, variables)
