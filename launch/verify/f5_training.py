"""F5-TTS golden rows of training: losses with their gradients, optimiser steps with averages, schedules."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.verify.f5_network import FORWARD, Variants
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report
from models.convert.f5_tts import PREFIX, to_official
from train import ema
from train.objectives.flow_matching import Draws, FlowMatching, span_mask
from train.optim import OptimSpec, make_optimizer
from train.schedule import make_schedule

LOSS, NORM, GRADIENT = 1e-5, 1e-4, 1e-4  # relative; a gradient's to its largest entry
STEP_LOSS, STEP_PARAMETER = 1e-4, 2e-5  # relative; absolute
RATE, DECAY = 1e-6, 1e-6  # relative; absolute
RELEASE = FlowMatching(time="release", drop_per="batch")
# The optimiser of train<n>.npz, as the folder's README states it; the learning rates are in the file.
STEP_OPTIMISER = OptimSpec(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=1.0, schedule="linear",
                           init_lr_ratio=1e-8, final_lr_ratio=1e-8)  # fmt: skip
STEP_AVERAGE = ema.EmaSpec(decay=0.9999, update_after_step=1, update_every=2, power=2 / 3)
END_RATIO = 1e-8  # of both ends of the release's schedule to its peak


def check(folder: GoldenFolder, variants: Variants, report: Report) -> None:
    """``loss_<variant>_<case>.npz``, ``train<n>.npz`` and ``schedules.json``."""
    for name, match in folder.names(r"loss_(.+)\.npz"):
        if variant := variants.named(match[1]):
            with report.guard(name, "reference"):
                loss(name, folder.arrays(name), variants, variant, report)
    for name, _ in folder.names(r"train\d+\.npz"):
        with report.guard(name, "reference"):
            steps(name, folder.arrays(name), variants, report)
    for name, _ in folder.names(r"schedules\.json"):
        with report.guard(name):
            schedules(name, folder.json(name), report)


def loss(file: str, stored: Any, variants: Variants, variant: str, report: Report) -> None:
    """One batch with every random number given: spans, drops, prediction, loss, gradients."""
    lengths, frames = stored["lens"], stored["mel"].shape[1]
    span = span_mask(stored["frac_lengths"], stored["span_start_u"], lengths, frames)
    report.equal(f"{file}:span", np.asarray(span), stored["span_mask_before_and"])
    audio, text = RELEASE.drops(stored["u_audio_drop"], stored["u_cond_drop"])
    flags = [bool(stored["drop_audio_cond"]), bool(stored["drop_text"])]
    report.equal(f"{file}:drops", [bool(audio), bool(text)], flags)

    value = Loss(stored, variants, variant, drop_audio=flags[0], drop_text=flags[1])
    with_gradient = "grad_norms" in stored
    if with_gradient:
        (got, prediction), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(value.params)
    else:
        (got, prediction), gradient = jax.jit(value)(value.params), None
    report.close(f"{file}:pred", "reference", prediction, stored["pred"], FORWARD)
    report.close(f"{file}:loss", "reference", got, stored["loss"], LOSS, relative=True)
    if gradient is None:
        return
    named = to_official(jax.device_get(gradient), prefix="")
    norms = {name: float(np.linalg.norm(g)) for name, g in named.items()}
    wanted = {_bare(str(n)): float(v) for n, v in zip(stored["grad_names"], stored["grad_norms"], strict=True)}
    report.equal(f"{file}:grad_names", sorted(norms), sorted(wanted))
    worst = max(abs(norms.get(name, 0.0) - v) / v if v else norms.get(name, 0.0) for name, v in wanted.items())
    report.close(f"{file}:grad_norms ({len(wanted)})", "reference", worst, 0.0, NORM)
    total = np.sqrt(sum(v**2 for v in norms.values()))
    report.close(f"{file}:grad_total_norm", "reference", total, stored["grad_total_norm"], NORM, relative=True)
    for key in stored:
        if key.startswith("grad__"):
            mine = named[_bare(key.removeprefix("grad__"))]
            report.close(f"{file}:{key}", "reference", mine, stored[key], GRADIENT, relative=True)


class Loss:
    """``(params) -> (loss, prediction)`` on a stored batch with stored draws, as the release computes it."""

    def __init__(self, stored: Any, variants: Variants, variant: str, *, drop_audio: bool, drop_text: bool):
        self.model = variants.model(variant, "reference")
        self.params = variants.variables(variant)["params"]
        self.mel, self.text, self.lengths = (jnp.asarray(stored[k]) for k in ("mel", "text", "lens"))
        rows = len(self.lengths)
        self.draws = Draws(
            noise=jnp.asarray(stored["x0"]),
            time=jnp.asarray(stored["time"]),
            span=jnp.asarray(stored["span_mask_before_and"]),
            drop_audio=jnp.full(rows, drop_audio),
            drop_text=jnp.full(rows, drop_text),
        )

    def __call__(self, params: Any) -> tuple[jax.Array, jax.Array]:
        seen = []

        def predict(x: jax.Array, clip: jax.Array, time: jax.Array, audio: jax.Array, text: jax.Array) -> jax.Array:
            variables = {"params": params, "stats": {}}
            out, _ = self.model.apply(variables, x, clip, self.text, time, self.lengths, audio, text)
            seen.append(out)
            return out

        result = RELEASE.loss(predict, self.mel, self.lengths, jnp.ones(len(self.lengths)), self.draws)
        return result.sum / result.weight, seen[0]


def steps(file: str, stored: Any, variants: Variants, report: Report) -> None:
    """Several updates on one batch: losses, norms, parameters and averages along the way."""
    rates = np.asarray(stored["lrs"], np.float64)
    variant, value = _model_of_steps(stored, variants)
    params = jax.tree.map(jnp.asarray, value.params)
    spec = dataclasses.replace(STEP_OPTIMISER, lr=float(rates.max()), warmup_steps=int(rates.argmax()))
    optimizer = make_optimizer(spec, params, steps=_total(rates))
    state, averages = optimizer.init(params), ema.init(params, [STEP_AVERAGE])

    @jax.jit
    def update(params: Any, state: Any, averages: Any, step: jax.Array) -> Any:
        (loss, _), gradient = jax.value_and_grad(value, has_aux=True)(params)
        updates, state, info = optimizer.update(gradient, state, params, step)
        params = jax.tree.map(jnp.add, params, updates)
        averages = ema.update(averages, params, step, [STEP_AVERAGE])
        return params, state, averages, (loss, info["grad_norm"], info["lr"])

    seen = []
    for step in range(len(rates)):
        params, state, averages, scalars = update(params, state, averages, jnp.int32(step))
        seen.append([float(s) for s in scalars])
        _weights(file, f"param_after{step + 1}__", params, stored, report)
        _weights(file, f"ema_after{step + 1}__", averages[STEP_AVERAGE.name], stored, report)
    losses, norms, used = np.array(seen).T
    mode = "reference"
    report.close(f"{file}:losses ({variant})", mode, losses / stored["losses"] - 1.0, 0 * losses, STEP_LOSS)
    report.close(f"{file}:grad_norms_preclip", mode, norms / stored["grad_norms_preclip"] - 1.0, 0 * norms, NORM)
    report.close(f"{file}:lrs", "host", used / rates - 1.0, 0 * rates, RATE)
    counted = np.arange(1, len(rates) + 1)
    decays = [ema.decay_at(STEP_AVERAGE, n) for n in counted]
    report.close(f"{file}:ema_decay_after", "host", decays, stored["ema_decay_after"], DECAY)


def _model_of_steps(stored: Any, variants: Variants) -> tuple[str, Loss]:
    """Which variant a training file is about is not said in it: the one whose first loss is the stored one."""
    best: tuple[float, str, Loss] | None = None
    for variant in variants.known:
        if variants.model(variant, "reference").abstract()["params"]["output"]["bias"].shape != stored["mel"].shape[2:]:
            continue
        value = Loss(stored, variants, variant, drop_audio=False, drop_text=False)
        if not _fits(value.params, stored):
            continue
        off = abs(float(jax.jit(value)(value.params)[0]) - float(stored["losses"][0]))
        if best is None or off < best[0]:
            best = (off, variant, value)
    if best is None:
        raise ValueError("its parameters fit none of the known variants")
    return best[1], best[2]


def _fits(params: Any, stored: Any) -> bool:
    named = to_official(jax.device_get(params), prefix="")
    wanted = {_bare(k.split("__", 1)[1]): stored[k].shape for k in stored if k.startswith("param_after")}
    return all(name in named and named[name].shape == shape for name, shape in wanted.items())


def _total(rates: np.ndarray) -> int:
    """Where the linear decay that ``rates`` show ends: the peak's index plus peak / slope."""
    peak = int(rates.argmax())
    if peak + 1 >= len(rates):
        return len(rates)
    return peak + round(float(rates[peak] / (rates[peak] - rates[peak + 1])))


def _weights(file: str, prefix: str, params: Any, stored: Any, report: Report) -> None:
    keys = [key for key in stored if key.startswith(prefix)]
    named = to_official(jax.device_get(params), prefix="") if keys else {}
    for key in keys:
        name = _bare(key.removeprefix(prefix))
        report.close(f"{file}:{key}", "reference", named[name], stored[key], STEP_PARAMETER)


def _bare(name: str) -> str:
    return re.sub(rf"^(?:{re.escape(PREFIX)}|transformer\.)", "", name)


def schedules(file: str, stored: Any, report: Report) -> None:
    """Learning rates and decays of the averages at named steps."""
    rate = stored["lr"]
    schedule = make_schedule(
        "linear", rate["peak"], total=rate["total"], warmup=rate["warmup"], init_ratio=END_RATIO, final_ratio=END_RATIO
    )
    wanted = rate["value_used_at_update"]
    off = [schedule(int(step)) / value - 1.0 for step, value in wanted.items()]
    report.close(f"{file}:lr ({len(off)})", "host", off, np.zeros(len(off)), RATE)
    average = stored["ema"]
    spec = ema.EmaSpec(
        decay=average["beta"],
        update_after_step=average["update_after_step"],
        update_every=average["update_every"],
        power=average["power"],
        inv_gamma=average["inv_gamma"],
    )
    wanted = average["decay_when_step_counter_is"]
    got = [float(ema.decay_at(spec, int(step))) for step in wanted]
    report.close(f"{file}:ema ({len(got)})", "host", got, list(wanted.values()), DECAY)
