"""Golden rows of the detectors' sampling: schedules, every step of whole runs, detections."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.verify.det_network import Network
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report
from models.ops.detections import Detections, suppress
from sampling import preconditioning
from sampling.box_paths import CosineBoxes, KarrasBoxes, cosine_alphas, transition
from sampling.detection import Head, Trace, denoise
from sampling.noise import Stored

SCHEDULE, SINGLE = 1e-6, 2e-6  # relative; of what is stored in float32
SMALLEST = 1e-20  # of a variance whose logarithm is taken
PIXELS, LOGITS, SCORES = 1e-2, 1e-3, 1e-4


def diffusion(config: Any) -> CosineBoxes:
    """The process of a golden folder's DiffusionDet."""
    return CosineBoxes(config["ddpm_timesteps"], config["SNR_SCALE"], config["ddim_eta"])


def consistency(config: Any) -> KarrasBoxes:
    """The process of a golden folder's ConsistencyDet, as released: levels down to σ_min, steps counted in the time,
    nothing clamped before the network and its answers cut at the image's borders."""
    return KarrasBoxes(
        sigma_min=float(config["sigma_min"]),
        sigma_max=float(config["sigma_max"]),
        sigma_data=float(config["sigma_data"]),
        rho=float(config["rho"]),
        trained=config["n_steps_train"],
        time="step",
        ends=True,
        clamp=False,
        clip=True,
    )


def check(folder: GoldenFolder, network: Network, report: Report) -> None:
    """``schedule.npz``, ``ddim_sample_<n>.npz``, ``consistency_sample_<n>.npz``, ``consistency_fn_inverted.npz``."""
    config, size = folder.config, folder.arrays("features.npz")["image_hw"]
    for name, _ in folder.names(r"schedule\.npz"):
        with report.guard(name):
            schedule(config, name, folder.arrays(name), report)
    for name, match in folder.names(r"(ddim|consistency)_sample_(\d+)\.npz"):
        with report.guard(name, "device"):
            run(config, match[1], network, size, name, folder.arrays(name), report)
    for name, _ in folder.names(r"consistency_fn_inverted\.npz"):
        with report.guard(name, "device"):
            inverted(config, network, size, name, folder.arrays(name), report)


def schedule(config: Any, file: str, stored: Any, report: Report) -> None:
    """Everything is a function of ᾱ or of σ."""

    def row(key: str, got: Any, tolerance: float = SCHEDULE) -> None:
        if key in stored:
            report.close(f"{file}:{key}", "host", got, stored[key], tolerance, relative=True)

    whole = cosine_alphas(config["ddpm_timesteps"], config["cosine_s"])
    at, before = (a[stored["timesteps"]] for a in (whole, np.append(1.0, whole[:-1])))
    columns = {
        "betas": 1 - at / before,
        "alphas_cumprod": at,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(at),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - at),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / at),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / at - 1),
    }
    # A step of DDIM with η = 1 to the neighbouring level is the posterior.
    alpha, sigma, alpha_before, sigma_before = np.sqrt([at, 1 - at, before, 1 - before])
    data, noise, spread = transition(alpha, sigma, alpha_before, sigma_before, 1.0)
    columns |= {
        "posterior_variance": spread**2,
        "posterior_log_variance_clipped": np.log(np.maximum(spread**2, SMALLEST)),
        "posterior_mean_coef1": data - noise * alpha / sigma,
        "posterior_mean_coef2": noise / sigma,
    }
    for name, column in columns.items():
        row(f"{name}_f64", column)
    for key in list(stored):
        if match := re.fullmatch(r"ddim_pairs_(\d+)", key):
            plan, steps = diffusion(config).plan(int(match[1])), match[1]
            pairs = np.stack([plan.level, np.append(plan.level[1:], -1)], 1).astype(int)
            report.equal(f"{file}:{key}", pairs.tolist(), stored[key].tolist())
            row(f"ddim_sigma_{steps}_f64", plan.fresh)
            row(f"ddim_c_{steps}_f64", plan.noise)
        elif match := re.fullmatch(r"karras_sigmas_(\d+)", key):
            row(key, np.append(consistency(config).plan(int(match[1])).level, 0.0), SINGLE)
    levels, width = stored["scal_sigma_f64"], float(config["sigma_data"])
    paper = preconditioning.consistency(levels, width, float(config["sigma_min"]))
    released = paper._replace(out=2 * paper.out, into=paper.into / 2)
    for name, form in (
        ("plain", preconditioning.edm(levels, width)),
        ("boundary_paper", paper),
        ("boundary_code", released),
    ):
        for part, value in (("c_skip", form.skip), ("c_out", form.out), ("c_in", form.into)):
            row(f"{name}_{part}_f64", value)


def run(config: Any, kind: str, network: Network, size: Any, file: str, stored: Any, report: Report) -> None:
    """A whole run from the stored normal numbers, three ways.

    A network of random weights makes errors a hundred times larger at every call, so what is compared number by number
    is: the network on the stored boxes ("head"), and everything else around the network's stored answers ("sampler").
    What they give together ("both") has to keep as many boxes and end with as many detections.
    """
    steps, one = int(stored["n_steps"]), size[:1]
    if kind == "ddim":
        path, family, overlap, used = diffusion(config), "diffusion", "diffusion", max(steps - 1, 1)
    else:
        path, family, used = consistency(config), "consistency", steps
        overlap = "consistency_single_step" if steps == 1 else "consistency_ensemble"
    shift = float(stored["class_logits_bias_added"]) if "class_logits_bias_added" in stored else 0.0
    variables, renewal = shifted(network.variables, shift), config["box_renewal_threshold"][family]
    plan, noise = path.plan(steps), noise_of_places(stored, steps, 2 if kind == "ddim" else 1)
    kinds = [name for name in ("head_pred_boxes", "head_pred_boxes_unclamped") if f"{name}_0" in stored]
    answers = [np.stack([stored[f"{name}_{i}"] for i in range(steps)]) for name in ("head_logits", kinds[0])]

    def answer(boxes: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, boxes = network(variables, boxes, time)
        return logits[-1], boxes[-1]

    def recall(boxes: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        step = jnp.abs(plan.time.astype(np.float32) - time[0]).argmin()
        return jnp.asarray(answers[0])[step], jnp.asarray(answers[1])[step]

    def finish(head: Head) -> tuple[Trace, Detections]:
        options = {"proposals": noise.shape[2], "steps": steps, "renewal": renewal}
        trace = denoise(head, path, one, Stored(jnp.asarray(noise)), **options)
        found = jax.tree.map(lambda a: a[:used, 0].reshape(-1, *a.shape[3:]), trace.found)
        return trace, suppress(found, config["nms_threshold"][overlap])

    call = jax.jit(answer)
    traced, found = jax.jit(lambda: finish(recall))()
    free, together = jax.jit(lambda: finish(answer))()
    for i in range(steps):
        report.equal(f"{file}:head_t_{i}", [int(plan.time[i])], stored[f"head_t_{i}"].tolist())
        got = call(stored[f"head_boxes_{i}"], stored[f"head_t_{i}"].astype(np.float32))
        for name, values, tolerance in zip(("head_logits", kinds[0]), got, (LOGITS, PIXELS), strict=True):
            report.close(f"{file}:{name}_{i}", "head", values, stored[f"{name}_{i}"], tolerance)
        for name, values in (("x", traced.x), ("head_boxes", traced.shown)):
            if f"{name}_{i}" in stored:
                report.close(f"{file}:{name}_{i}", "sampler", values[i], stored[f"{name}_{i}"], PIXELS)
        kept = [int(stored[f"num_kept_{i}"])]
        report.equal(f"{file}:num_kept_{i}", traced.kept[i].tolist(), kept, "sampler")
        report.equal(f"{file}:num_kept_{i}", free.kept[i].tolist(), kept, "both")
    if "sigmas" in stored:
        report.close(f"{file}:sigmas", "host", np.append(plan.level, 0), stored["sigmas"], SINGLE, relative=True)
    valid = np.asarray(found.valid)
    for name, values, tolerance in (("boxes", found.boxes, PIXELS), ("scores", found.scores, SCORES)):
        report.close(f"{file}:det_{name}", "sampler", values[valid], stored[f"det_{name}"], tolerance)
    report.equal(f"{file}:det_labels", found.labels[valid].tolist(), stored["det_labels"].tolist(), "sampler")
    report.equal(f"{file}:number of detections", [int(together.valid.sum())], [len(stored["det_boxes"])], "both")


def noise_of_places(stored: Any, steps: int, draws: int) -> np.ndarray:
    """[steps, 1, n, 4]: the start's noise, then that of every place after each step but the last.

    The release draws as much as it needs: with ``draws`` = 2 for the boxes that stay, then for new ones; with 1 only
    for new ones, since Euler's steps draw nothing.
    """
    parts = [[stored[f"draw_{1 + draws * i + k}"] for k in range(draws)] for i in range(steps - 1)]
    for i in range(1 + draws * (steps - 1), int(stored["n_draws"])):
        _ = stored[f"draw_{i}"]  # after the last step, of no consequence
    first = stored["draw_0"]
    stay = [np.zeros((1, int(stored[f"num_kept_{i}"]), 4), first.dtype) for i in range(steps - 1)]
    rows = [np.concatenate([none, *part] if draws == 1 else part, 1) for none, part in zip(stay, parts, strict=True)]
    return np.stack([first, *rows])


def inverted(config: Any, network: Network, size: Any, file: str, stored: Any, report: Report) -> None:
    """What the release does with boxes that noise has turned inside out: informational, not a behaviour to want."""
    path, x, sigma = consistency(config), stored["x"], stored["sigma"]
    shown = path.place(x, sigma, size)
    report.close(f"{file}:head_in_boxes", "device", shown, stored["head_in_boxes"], PIXELS)
    report.equal(f"{file}:inverted", _inverted(shown).ravel().tolist(), stored["inverted"].ravel().tolist())
    logits, boxes = jax.jit(network)(network.variables, shown, stored["time_cond"].astype(np.float32))
    report.close(f"{file}:logits", "device", logits, stored["logits"], LOGITS)
    boxes = path.answer(x, boxes, sigma, size)
    report.close(f"{file}:pred_boxes", "device", boxes, stored["pred_boxes"], PIXELS)
    clamped = _inverted(dataclasses.replace(path, clamp=True).place(x, sigma, size))
    report.equal(f"{file}:inverted once noise is clamped", [int(clamped.sum())], [0])


def _inverted(boxes: jax.Array) -> np.ndarray:
    return np.asarray((boxes[..., 2:] < boxes[..., :2]).any(-1))


def shifted(variables: Any, shift: float) -> Any:
    """The network with a number added to every class logit."""
    params = variables["params"]
    logits = params["stages"]["logits"]
    stages = {**params["stages"], "logits": {**logits, "bias": logits["bias"] + shift}}
    return {**variables, "params": {**params, "stages": stages}}
