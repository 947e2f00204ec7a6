"""Speech: text and a reference clip in, log-mel frames out, by flow matching (F5-TTS and its kin)."""

import functools
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.typing import ArrayLike

from data.audio import filterbank, load_mel, save_wav, window
from data.errors import UserError
from data.text import Tokenizer, pad_ids
from models import duration
from models.duration import DurationModel
from models.functional import functional
from models.vocoders.griffin_lim import vocode
from sampling.grids import flow_grid
from sampling.infill import InfillNetwork, infill
from sampling.noise import start_noise
from train import rng, trees
from train.objectives.flow_matching import BUCKETS, FlowMatching
from train.task import AxisRules, Batch, LossOutput, StepContext, Term, Variables

Shapes = Sequence[Mapping[str, jax.ShapeDtypeStruct]]
DURATION = "duration"  # where the duration predictor's parameters stand
KNOWN = 0.4  # share of an utterance that in-loop samples are given
SHOWN = 2  # utterances per set of in-loop samples


class SpeechTask:
    """Trains a network to fill in masked mel frames given the text.

    Args:
      model: the network's constructor; it is given ``mel_dim``, ``text_num_embeds``, ``dtype`` and ``rngs``.  Its
        methods are those of ``models.dit.DiT``, its module has ``AXES``.
      assets: folder with ``tokenizer.json`` and ``mel.json``.
      shapes: the global batches of the run, abstract; not needed to sample.
      precision: type of the matrix products.
      normalise: subtract the data's mean of the log-mel and divide by its deviation (both in ``mel.json``); the
        release does not.
      steps, cfg_strength, sway: of in-loop samples.
      duration_weight: coefficient of a small duration predictor's loss (``models/duration.py``), 0 = none.  It has
        parameters of its own, ``duration/...``, and no gradient reaches the network; the joint gradient clip sees both.
      prediction, max_weight, time, time_mean, time_std, span, drop_audio, drop_both, drop_per: see
        ``train.objectives.flow_matching.FlowMatching``.
    """

    unit = "frames"
    optional = f"{DURATION}/.*"  # released checkpoints have no duration predictor

    def __init__(
        self,
        model: Callable[..., nnx.Module],
        assets: str | Path,
        shapes: Shapes = (),
        precision: str = "float32",
        *,
        normalise: bool = True,
        steps: int = 16,
        cfg_strength: float = 2.0,
        sway: float = -1.0,
        duration_weight: float = 0.0,
        prediction: str = "velocity",
        max_weight: float = 20.0,
        time: str = "uniform",
        time_mean: float = 0.0,
        time_std: float = 1.0,
        span: Sequence[float] = (0.7, 1.0),
        drop_audio: float = 0.3,
        drop_both: float = 0.2,
        drop_per: str = "sample",
    ):
        self.assets = Path(assets)
        self.tokenizer = Tokenizer.load(assets)
        self.spec, mean, std = load_mel(assets)
        self.mean, self.std = (mean, std) if normalise else (0.0, 1.0)
        self.objective = FlowMatching(
            prediction=prediction,
            max_weight=max_weight,
            time=time,
            time_mean=time_mean,
            time_std=time_std,
            span=(span[0], span[1]),
            drop_audio=drop_audio,
            drop_both=drop_both,
            drop_per=drop_per,
        )
        sizes = {"mel_dim": self.spec.n_mels, "text_num_embeds": self.tokenizer.size, "dtype": jnp.dtype(precision)}
        self.network = functional(lambda rngs: model(**sizes, rngs=rngs))
        self.duration_weight = duration_weight
        size = self.tokenizer.size
        self.durations = functional(lambda rngs: DurationModel(size, rngs=rngs)) if duration_weight else None
        self._axes = sys.modules[getattr(model, "func", model).__module__].AXES
        self._shapes = shapes
        self._grid = flow_grid(steps, sway_coefficient=sway)
        self._weight = cfg_strength + 1.0
        self._sample = jax.jit(self._fill)

    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The global batch with the most frames."""
        return dict(max(self._shapes, key=lambda batch: batch["mel"].size))

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables."""
        fresh = self.network.init(key)
        if self.durations is not None:
            fresh["params"][DURATION] = self.durations.init(jax.random.fold_in(key, 1))["params"]
        return fresh

    def abstract(self) -> Variables:
        """Shapes of the variables."""
        shapes = self.network.abstract()
        if self.durations is not None:
            shapes["params"][DURATION] = self.durations.abstract()["params"]
        return shapes

    def axes(self) -> AxisRules:
        """The model files' own rules."""
        return [*self._axes, *((f"{DURATION}/({regex})", names) for regex, names in duration.AXES)]

    def check_assets(self, folder: Path) -> None:
        """Whether a checkpoint with the assets in ``folder`` means the same by text ids and mel bands as this task.

        Raises:
          UserError: another vocabulary, or another mel; the first difference is named.
        """
        theirs, ours = Tokenizer.load(folder), self.tokenizer
        if theirs.symbols != ours.symbols or theirs.size != ours.size:
            pairs = enumerate(itertools.zip_longest(theirs.symbols, ours.symbols))
            first = next(
                (f"id {i} is {a!r} there and {b!r} here" for i, (a, b) in pairs if a != b), "bytes, not symbols"
            )
            raise UserError(
                f"{folder} has a vocabulary of {theirs.size} symbols and this run one of {ours.size} ({first}); set "
                "--config.data.tokenizer=kept to keep theirs, or resize the checkpoint's (run_convert --resize_vocab)"
            )
        spec, _, _ = load_mel(folder)
        wrong = [name for name, value in spec.to_dict().items() if value != getattr(self.spec, name)]
        if wrong:
            name = wrong[0]
            raise UserError(
                f"{folder} was trained with mel.{name}={getattr(spec, name)!r}; this run has "
                f"config.data.mel.{name}={getattr(self.spec, name)!r}: use the checkpoint's"
            )

    def loss(self, variables: Variables, batch: Batch, key: jax.Array, ctx: StepContext) -> LossOutput:
        """``flow``: squared velocity error over hidden entries; ``loss_t…``: the same by time."""
        draw_key, dropout_key = jax.random.split(key)
        mel, lengths = self.normalise(batch["mel"], batch["mel_lengths"]), batch["mel_lengths"]
        draws = self.objective.draw(draw_key, batch["index"], lengths, *mel.shape[1:])
        keys = rng.per_example(dropout_key, batch["index"])
        new_stats, network = variables["stats"], _of_network(variables)

        def predict(x: jax.Array, clip: jax.Array, time: jax.Array, audio: jax.Array, text: jax.Array) -> jax.Array:
            nonlocal new_stats
            out, stats = self.network.apply(network, x, clip, batch["text"], time, lengths, audio, text, keys)
            new_stats = stats or new_stats
            return out

        result = self.objective.loss(predict, mel, lengths, batch["mask"], draws)
        buckets = {f"loss_{name}": pair for name, pair in result.buckets.items()}
        terms = {"flow": Term(result.sum, result.weight)}
        if self.durations is not None:
            error, mask = self._duration_error(variables, batch), batch["mask"]
            terms["duration"] = Term((jnp.square(error) * mask).sum(), mask.sum(), self.duration_weight)
        return LossOutput(terms, buckets, new_stats)

    def _duration_error(self, variables: Variables, batch: Batch) -> jax.Array:
        """Log of predicted over real frames [b]."""
        assert self.durations is not None
        own = {"params": variables["params"][DURATION], "stats": {}}
        total, _ = self.durations.apply(own, batch["text"], method="total")
        return duration.log_error(total, batch["mel_lengths"])

    def duration_predictor(self, variables: Variables) -> Callable[..., float]:
        """What has been learned about durations, as the pipeline takes it.

        Returns:
          ``(ref_frames, ref_ids, ids, texts) -> frames`` of the new speech at the reference's pace.

        Raises:
          UserError: this task has no duration predictor.
        """
        if self.durations is None:
            raise UserError("this model has no duration predictor; train with --config.task.duration_weight=0.1")
        own = {"params": variables["params"][DURATION], "stats": {}}
        pace = jax.jit(functools.partial(self.durations.apply, method="pace"))

        def predict(ref_frames: int, ref_ids: Sequence[int], ids: Sequence[int], texts: tuple[str, str]) -> float:
            del texts
            both = [*ref_ids, *ids]
            text = pad_ids([both], -(-len(both) // 64) * 64)  # few shapes; padding changes nothing
            frames, _ = pace(own, text, jnp.array([len(ref_ids)]), jnp.array([ref_frames]))
            return float(frames[0])

        return predict

    def evaluate(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The loss with nothing dropped, every row at the middle of each bucket of t: low noise, exact over padding."""
        mel, lengths = self.normalise(batch["mel"], batch["mel_lengths"]), batch["mel_lengths"]
        draws = self.objective.draw(key, batch["index"], lengths, *mel.shape[1:])
        nothing = jnp.zeros_like(draws.drop_audio)
        network = self.infill_network(variables, mel.shape[1])
        text = network.encode(batch["text"], lengths, nothing)

        def predict(x: jax.Array, clip: jax.Array, time: jax.Array, *drops: jax.Array) -> jax.Array:
            return network.predict(x, clip, text, time, lengths)

        def at(time: jax.Array) -> tuple[jax.Array, jax.Array]:
            moment = draws._replace(time=jnp.full_like(draws.time, time), drop_audio=nothing, drop_text=nothing)
            result = self.objective.loss(predict, mel, lengths, batch["mask"], moment)
            return result.sum, result.weight

        sums, weights = jax.lax.map(at, (jnp.arange(BUCKETS) + 0.5) / BUCKETS)
        names = [f"loss_t{i / BUCKETS:.1f}-{(i + 1) / BUCKETS:.1f}" for i in range(BUCKETS)]
        out = {"loss": (sums.sum(), weights.sum())} | {n: (sums[i], weights[i]) for i, n in enumerate(names)}
        if self.durations is not None:
            mask = batch["mask"]
            out["duration_error"] = ((jnp.abs(self._duration_error(variables, batch)) * mask).sum(), mask.sum())
        return out

    def sample(self, variables: Variables, batch: Batch, key: jax.Array, folder: str) -> dict[str, float]:
        """The first held-out utterances continued from their first 40 %: ``<i>.wav`` and ``<i>.png`` with the truth.

        Returns the mean absolute difference of the log-mel inside what was generated; a blunt number, but one that
        falls.
        """
        truth, made, known, lengths, real = (_host(a) for a in self._sample(variables, dict(batch), key))
        differences = []
        for i in np.flatnonzero(real > 0):
            frames, given = int(lengths[i]), int(known[i])
            differences.append(np.abs(truth[i, given:frames] - made[i, given:frames]).mean())
            self._show(Path(folder), str(i), truth[i, :frames], made[i, :frames], given)
        return {"mel_difference": float(np.mean(differences))} if differences else {}

    def _fill(self, variables: Variables, batch: Batch, key: jax.Array) -> tuple[jax.Array, ...]:
        """Log-mel of truth and sample [SHOWN, t, m], known frames, lengths and whether the row is real [SHOWN]."""
        batch = {name: array[:SHOWN] for name, array in batch.items()}
        mel, lengths = self.normalise(batch["mel"], batch["mel_lengths"]), batch["mel_lengths"]
        given = jnp.floor(KNOWN * lengths).astype(jnp.int32)
        frames = mel.shape[1]
        result = infill(
            self.infill_network(variables, frames),
            mel,
            jnp.arange(frames) < given[:, None],
            batch["text"],
            lengths,
            start_noise(key, batch["index"], mel.shape[1:]),
            self._grid,
            weight=self._weight,
        )
        return self.denormalise(mel), self.denormalise(result.out), given, lengths, batch["mask"]

    def _show(self, folder: Path, name: str, truth: np.ndarray, made: np.ndarray, known: int) -> None:
        from train.pictures import spectrograms

        pictures = {"recorded": truth, "generated after the line": made}
        spectrograms(folder / f"{name}.png", pictures, self.spec, known)
        wave = self.griffin_lim(made[None], np.array([len(made)]), jax.random.key(0))
        save_wav(folder / f"{name}.wav", np.asarray(wave[0]), self.spec.sample_rate)

    def units(self, batch: Mapping[str, Any]) -> float:
        """Real mel frames."""
        return float((np.asarray(batch["mel_lengths"]) * np.asarray(batch["mask"])).sum())

    def flops(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Forward and backward of the matrix products and of attention; backward is twice the forward."""
        rows, frames, _ = shapes["mel"].shape
        per_frame, per_row, attention = self._work
        return 3.0 * rows * (per_row + frames * (per_frame + attention * frames))

    @functools.cached_property
    def _work(self) -> tuple[float, float, float]:
        """FLOPs per frame, per row, and per frame and attended frame."""
        per_frame = per_row = attention = 0.0
        for path, leaf in trees.flatten(self.network.abstract()["params"]).items():
            parts = path.split("/")
            if parts[-1] != "kernel":
                continue
            if "time" in parts or "modulation" in parts:  # computed once a row, of the time embedding
                per_row += 2.0 * leaf.size
            else:
                per_frame += 2.0 * leaf.size
            if parts[-2] == "q":  # scores and weighted sum, over layers × heads × head width
                attention += 4.0 * leaf.size / leaf.shape[-2]
        return per_frame, per_row, attention

    def normalise(self, mel: jax.Array, lengths: jax.Array) -> jax.Array:
        """Log-mel [b, t, m] -> what the network sees; 0 past each row's length."""
        inside = jnp.arange(mel.shape[1]) < lengths[:, None]
        return jnp.where(inside[..., None], (mel - self.mean) / self.std, 0.0)

    def denormalise(self, mel: jax.Array) -> jax.Array:
        """The inverse: log-mel."""
        return mel * self.std + self.mean

    def griffin_lim(self, mel: ArrayLike, lengths: ArrayLike, key: jax.Array) -> jax.Array:
        """The built-in vocoder: log-mel [b, t, m] -> waves [b, samples]; ``key`` is one key or one per row."""
        spec = self.spec
        lengths = jnp.asarray(lengths)
        return vocode(jnp.asarray(mel), lengths, key, window(spec), filterbank(spec), hop=spec.hop, pad=spec.padding)

    def infill_network(self, variables: Variables, frames: int) -> InfillNetwork:
        """The network under ``variables`` as the sampler's two callables, for sequences padded to ``frames``."""
        variables = _of_network(variables)

        def encode(text: jax.Array, lengths: jax.Array | None, drop: jax.Array) -> jax.Array:
            return self.network.apply(variables, text, lengths, frames, drop, method="encode_text")[0]

        def predict(
            x: jax.Array, clip: jax.Array, text: jax.Array, t: jax.Array, lengths: jax.Array | None
        ) -> jax.Array:
            return self.network.apply(variables, x, clip, text, t, lengths, method="velocity")[0]

        return InfillNetwork(encode, predict, self.objective.prediction)


def _of_network(variables: Variables) -> Variables:
    """Without the duration predictor's parameters, which the network does not know."""
    params = {name: tree for name, tree in variables["params"].items() if name != DURATION}
    return {**variables, "params": params}


def _host(array: jax.Array) -> np.ndarray:
    """The whole array in every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
