"""Vocoders: log-mel in, wave out, learned by reconstruction and, if asked for, against discriminators."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from data.audio import MelSpec, filterbank, load_mel, save_wav, window
from data.errors import UserError
from models.functional import functional
from models.ops import stft
from models.vocoders import discriminators
from models.vocoders.discriminators import Discriminators
from train import trees
from train.objectives import adversarial
from train.objectives.spectral import magnitudes, stft_distance
from train.task import AxisRules, Batch, LossOutput, StepContext, Term, Variables

Shapes = Sequence[Mapping[str, jax.ShapeDtypeStruct]]
SIZES = (2048, 1024, 512)  # of the spectra that ``stft_distance`` compares
SHOWN = 4  # crops per set of in-loop samples


class VocoderTask:
    """Trains a network to turn the log-mel of a wave back into the wave.

    Parameters are ``generator/…`` and ``discriminators/…``; give each its own optimiser by ``optim.groups``.

    Args:
      model: the network's constructor; it is given ``mel_dim``, ``n_fft``, ``hop``, ``dtype`` and ``rngs`` and called
        with (mel, lengths, window), like ``models.vocoders.vocos.Vocos``.  Its module has ``AXES``.
      assets: folder with ``mel.json``.
      shapes: the global batches of the run, abstract; not needed to vocode.
      precision: type of the matrix products.
      mel_weight: of the mean absolute difference of the log-mel.
      stft_weight: of the multi-resolution STFT distance; 0 = left out.
      adversarial_from: the first step with discriminators; before it there is reconstruction alone.  -1 = there are no
        discriminators at all.
      match_weight: of the features' distance, relative to the verdicts'.
      resolution_weight: of everything that the ``resolutions`` say, relative to the ``periods``.
      periods, period_channels, resolution_channels: see ``models.vocoders.discriminators.Discriminators``.
      resolutions: FFT sizes, one discriminator each.
    """

    unit = "frames"
    optional = "discriminators/.*"  # converted vocoders come without

    def __init__(
        self,
        model: Callable[..., nnx.Module],
        assets: str | Path,
        shapes: Shapes = (),
        precision: str = "float32",
        *,
        mel_weight: float = 45.0,
        stft_weight: float = 0.0,
        adversarial_from: int = 0,
        match_weight: float = 1.0,
        resolution_weight: float = 0.1,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        period_channels: Sequence[int] = (32, 128, 512, 1024, 1024),
        resolutions: Sequence[int] = (2048, 1024, 512),
        resolution_channels: int = 32,
    ):
        self.spec, _, _ = load_mel(assets)
        spec = self.spec
        sizes = {"mel_dim": spec.n_mels, "n_fft": spec.n_fft, "hop": spec.hop, "dtype": jnp.dtype(precision)}
        self.generator = functional(lambda rngs: model(**sizes, rngs=rngs))
        self._axes = [(f"generator/{p}", a) for p, a in sys.modules[getattr(model, "func", model).__module__].AXES]
        self._shapes = shapes
        self._start = adversarial_from
        self._weights = {"mel": mel_weight, "stft": stft_weight, "match": match_weight, "resolution": resolution_weight}
        self._resolutions = tuple(resolutions)
        self.discriminators = None
        if adversarial_from >= 0:
            options = {"periods": periods, "period_channels": period_channels, "resolutions": len(resolutions)}
            channels = resolution_channels
            self.discriminators = functional(
                lambda rngs: Discriminators(**options, resolution_channels=channels, rngs=rngs)
            )
            self._axes += [(f"discriminators/{p}", a) for p, a in discriminators.AXES]
        self._sample = jax.jit(self._reconstruct)
        for batch in shapes:
            self._check(batch["wave"])

    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The global batch; all are alike."""
        return dict(self._shapes[0])

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables."""
        own, others = jax.random.split(key)
        params = {"generator": self.generator.init(own)["params"]}
        if self.discriminators is not None:
            params["discriminators"] = self.discriminators.init(others)["params"]
        return {"params": params, "stats": {}}

    def abstract(self) -> Variables:
        """Shapes of what ``init`` makes."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def check_assets(self, folder: Path) -> None:
        """Whether a vocoder with the assets in ``folder`` inverts this task's mel.

        Raises:
          UserError: it does not; the first difference is named.
        """
        spec, _, _ = load_mel(folder)
        for name, value in spec.to_dict().items():
            if value != getattr(self.spec, name):
                raise UserError(
                    f"{folder} was trained with mel.{name}={value!r}; this run has "
                    f"config.data.mel.{name}={getattr(self.spec, name)!r}: use the checkpoint's"
                )

    def axes(self) -> AxisRules:
        """The model files' own rules."""
        return self._axes

    def loss(self, variables: Variables, batch: Batch, key: jax.Array, ctx: StepContext) -> LossOutput:
        """The generator's terms ``mel``, ``stft``, ``fool_…`` and ``match_…``; the discriminators', ``tell_…``."""
        del key  # crops are all that is random
        truth, rows, params = batch["wave"], batch["mask"], variables["params"]
        mel = self.log_mel(truth)
        made = self.vocode(params["generator"], mel)
        values = {"mel": jnp.abs(self.log_mel(made) - mel).mean((1, 2))}
        if self._weights["stft"]:
            values["stft"] = stft_distance(made, truth, self._windows(SIZES))
        if self.discriminators is not None:
            values |= self._adversarial(params["discriminators"], made, truth, ctx.step)
        terms = {name: Term((v * rows).sum(), rows.sum(), self._coefficient(name)) for name, v in values.items()}
        return LossOutput(terms, {}, variables["stats"])

    def evaluate(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        """``mel``: mean absolute difference of the log-mel; ``stft``: multi-resolution STFT distance."""
        del key
        truth, rows = batch["wave"], batch["mask"]
        mel = self.log_mel(truth)
        made = self.vocode(variables["params"]["generator"], mel)
        values = {
            "mel": jnp.abs(self.log_mel(made) - mel).mean((1, 2)),
            "stft": stft_distance(made, truth, self._windows(SIZES)),
        }
        return {name: ((v * rows).sum(), rows.sum()) for name, v in values.items()}

    def sample(self, variables: Variables, batch: Batch, key: jax.Array, folder: str) -> dict[str, float]:
        """The first held-out crops: ``<i>.wav``, ``<i>.recorded.wav`` and ``<i>.png`` with both spectrograms."""
        from train.pictures import spectrograms

        del key
        arrays = self._sample(variables, {name: array[:SHOWN] for name, array in batch.items()})
        truth, made, mel, mel_made, real = (_host(a) for a in arrays)
        for i in np.flatnonzero(real > 0):
            for name, wave in ((f"{i}.wav", made[i]), (f"{i}.recorded.wav", truth[i])):
                save_wav(Path(folder) / name, wave, self.spec.sample_rate)
            spectrograms(Path(folder) / f"{i}.png", {"recorded": mel[i], "vocoded": mel_made[i]}, self.spec)
        return {}

    def units(self, batch: Mapping[str, Any]) -> float:
        """Mel frames."""
        return float(np.asarray(batch["mask"]).sum()) * batch["wave"].shape[1] / self.spec.hop

    def flops(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Forward and backward of a generator that works at the frame rate; discriminators are not counted."""
        rows, samples = shapes["wave"].shape
        flat = trees.flatten(self.generator.abstract()["params"])
        weights = sum(leaf.size for path, leaf in flat.items() if path.endswith("kernel"))
        return 6.0 * rows * self.spec.frames(samples) * weights

    def vocode(self, generator: Any, mel: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Log-mel [b, t, m] -> waves [b, samples] by these parameters; see the network's own ``__call__``."""
        return self.generator.apply({"params": generator, "stats": {}}, mel, lengths, window(self.spec))[0]

    def samples(self, frames: int) -> int:
        """Samples that the generator makes of that many frames."""
        mel = jax.ShapeDtypeStruct((1, frames, self.spec.n_mels), jnp.float32)
        return jax.eval_shape(self.vocode, self.generator.abstract()["params"], mel).shape[1]

    def log_mel(self, wave: jax.Array) -> jax.Array:
        """[b, samples] -> [b, t, m]."""
        spec: MelSpec = self.spec
        eps = 1e-9 if spec.kind == "bigvgan" else 0.0
        arrays = jnp.asarray(window(spec)), jnp.asarray(filterbank(spec))
        return stft.log_mel(wave, *arrays, hop=spec.hop, pad=spec.padding, eps=eps)

    def _adversarial(self, params: Any, made: jax.Array, truth: jax.Array, step: jax.Array) -> dict[str, jax.Array]:
        """The terms of ``train.objectives.adversarial``; zero, and not computed, before their first step."""

        def judge(params: Any, wave: jax.Array) -> dict[str, Any]:
            spectra = [magnitudes(wave, w) for w in self._windows(self._resolutions)]
            return self.discriminators.apply({"params": params, "stats": {}}, wave, spectra)[0]  # type: ignore[union-attr]

        def play(params: Any, made: jax.Array, truth: jax.Array) -> dict[str, jax.Array]:
            return adversarial.losses(judge, params, made, truth)

        if self._start == 0:
            return play(params, made, truth)
        shapes = jax.eval_shape(play, params, made, truth)

        def rest(*args: Any) -> dict[str, jax.Array]:
            del args
            return {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}

        return jax.lax.cond(step >= self._start, play, rest, params, made, truth)

    def _coefficient(self, name: str) -> float:
        what, _, kind = name.partition("_")
        if not kind:
            return self._weights[what]
        side = self._weights["resolution"] if kind == "resolution" and what != "tell" else 1.0
        return side * (self._weights["match"] if what == "match" else 1.0)

    def _windows(self, sizes: Sequence[int]) -> list[jax.Array]:
        return [jnp.asarray(window(MelSpec(n_fft=n, hop=n // 4, win=n))) for n in sizes]

    def _reconstruct(self, variables: Variables, batch: Batch) -> tuple[jax.Array, ...]:
        mel = self.log_mel(batch["wave"])
        made = self.vocode(variables["params"]["generator"], mel)
        return batch["wave"], made, mel, self.log_mel(made), batch["mask"]

    def _check(self, wave: jax.ShapeDtypeStruct) -> None:
        """The network must give back as many samples as it was shown."""
        samples = self.samples(self.spec.frames(wave.shape[1]))
        if samples != wave.shape[1]:
            raise UserError(
                f"config.model: of {wave.shape[1]} samples it makes {samples}; a mel of kind 'vocos' needs "
                "padding 'center', one of kind 'bigvgan' padding 'same'"
            )


def _host(array: jax.Array) -> np.ndarray:
    """The whole array in every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
