"""Golden rows of the detectors' training: matches, set losses, whole objectives from recorded noise with gradients."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from launch.verify.det_network import Network
from launch.verify.det_sampling import consistency, diffusion
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report
from models.convert.detection import to_official
from models.ops.boxes import iou, pairwise
from train.objectives.box_consistency import NEAR, TwoLevels
from train.objectives.box_denoising import BoxDenoising, Draws, Heads, Truth, start_boxes
from train.objectives.consistency_schedules import karras_level
from train.objectives.matching import NONE, Costs, SimOTA, Targets, match
from train.objectives.set_prediction import SetPrediction
from train.task import Term

COST, OVERLAP = 1e-3, 1e-6
LOSS, TRAINING, GRADIENT = 1e-4, 1e-3, 1e-2  # relative; of the last two, through the network
CODED, PIXELS = 1e-5, 1e-3
NETWORK = (1e-3, 1e-2)  # logits, pixels
NAMES = {"class": "ce", "l1": "bbox", "giou": "giou"}  # ours -> the release's


def check(folder: GoldenFolder, network: Network, report: Report) -> None:
    """``matcher.npz``, ``matcher_quirk.npz``, ``losses.npz``, ``diffusion_train.npz`` with its gradients,
    ``consistency_train.npz``."""
    loss = criterion(folder.config)
    for name, found in folder.names(r"matcher(_quirk)?\.npz"):
        with report.guard(name, "device"):
            (quirk if found[1] else matches)(simota(folder.config), name, folder.arrays(name), report)
    for name, _ in folder.names(r"losses\.npz"):
        with report.guard(name, "device"):
            losses(loss, name, folder.arrays(name), report)
    for name, _ in folder.names(r"diffusion_train\.npz"):
        with report.guard(name, "device"):
            stored = folder.arrays(name)
            gradients = denoising(diffusion(folder.config), loss, network, name, stored, report)
            if folder.has(file := name.replace(".npz", "_grads.safetensors")):
                want = load_file(folder.file(file))
                _norms(file, gradients, want, {n: float(np.linalg.norm(g)) for n, g in want.items()}, report)
    for name, _ in folder.names(r"consistency_train\.npz"):
        with report.guard(name, "device"):
            stored = folder.arrays(name)
            gradients = two_levels(consistency(folder.config), loss, network, name, stored, report)
            norms = dict(zip(map(str, stored["grad_norm_names"]), stored["grad_norms"].tolist(), strict=True))
            _norms(name, gradients, {}, norms, report)


def simota(config: Any) -> SimOTA:
    """The matcher of a golden folder."""
    classes, l1, giou = (float(config[f"{name}_weight"]) for name in ("class", "l1", "giou"))
    return SimOTA(Costs(classes, l1, giou, config["focal_alpha"], config["focal_gamma"]), most=config["OTA_K"])


def criterion(config: Any) -> SetPrediction:
    """The set loss of a golden folder, counted as released."""
    matcher = simota(config)
    costs = matcher.costs
    return SetPrediction(matcher, costs.classes, costs.l1, costs.giou, costs.alpha, costs.gamma, count="release")


def truth(stored: Any) -> Targets:
    """The padded targets of a file."""
    size = stored["image_whwh"][:, [1, 0]]
    return Targets(stored["gt_boxes_xyxy"], stored["gt_labels"].astype(np.int32), stored["gt_mask"], size)


def matches(matcher: SimOTA, file: str, stored: Any, report: Report) -> None:
    """Costs, overlaps, shares, and who is matched with whom."""
    targets, logits, boxes = truth(stored), stored["logits"], stored["pred_boxes"]
    real = np.broadcast_to(targets.valid[:, None], stored["cost"].shape)

    @jax.jit
    @jax.vmap
    def parts(logits, boxes, targets):
        cost, shares = matcher.cost(logits, boxes, targets), matcher.shares(boxes, targets)
        claimed, numbers = matcher.claim(cost, shares), jnp.arange(len(targets.valid))
        left_out = (targets.valid & ~(claimed[:, None] == numbers).any(0)).any()
        return cost, pairwise(iou, boxes, targets.boxes), shares, left_out

    cost, overlap, shares, left_out = map(np.asarray, parts(logits, boxes, targets))
    report.close(f"{file}:cost", "device", cost[real], stored["cost"][real], COST)
    report.close(f"{file}:iou", "device", overlap[real], stored["iou"][real], OVERLAP)
    valid = np.asarray(targets.valid)
    report.equal(f"{file}:dynamic_k", shares[valid].tolist(), stored["dynamic_k"][valid].tolist(), "device")
    report.equal(f"{file}:repair_loop", left_out.tolist(), stored["repair_loop"].tolist(), "device")
    assigned = np.asarray(jax.jit(match, static_argnums=0)(matcher, logits[None], boxes[None], targets))[0]
    report.equal(f"{file}:assigned_gt", assigned.ravel().tolist(), stored["assigned_gt"].ravel().tolist(), "device")
    held = assigned[:, :, None] == np.arange(valid.shape[1])
    if "matched_query_per_gt" in stored:
        first = np.where(held, cost, np.inf).argmin(1)
        report.equal(f"{file}:matched_query_per_gt", first[valid], stored["matched_query_per_gt"][valid], "device")
    if "all_gt_covered" in stored:
        covered = (held.any(1) | ~valid).all(1)
        report.equal(f"{file}:all_gt_covered", covered.tolist(), stored["all_gt_covered"].tolist(), "device")


def quirk(matcher: SimOTA, file: str, stored: Any, report: Report) -> None:
    """Where the release drops a target: informational; ours leaves none out."""
    targets = truth(stored)
    assigned = np.asarray(match(matcher, stored["logits"][None], stored["pred_boxes"][None], targets))[0]
    every = [sorted({int(j) for j in row} - {NONE}) for row in assigned]
    theirs = [sorted({int(j) for j in row} - {NONE}) for row in stored["assigned_gt"]]
    report.equal(f"{file}:every target has a box", every, [np.flatnonzero(row).tolist() for row in targets.valid])
    report.equal(f"{file}:the release leaves one out", [theirs != every], [True])
    for key in stored:
        _ = stored[key]  # the rest is what led the release there


def losses(loss: SetPrediction, file: str, stored: Any, report: Report) -> None:
    """The set loss with its gradients; with some classes only; without any target."""
    targets, rows = truth(stored), jnp.ones(len(stored["gt_mask"]))
    values = stored["logits"], stored["pred_boxes"]

    def total(logits, boxes, targets, judged=None):
        terms = loss(logits, boxes, targets, rows, judged)
        return _total(terms), _values(terms)

    step = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
    (whole, plain), gradients = step(*values, targets)
    _relative(f"{file}:total_weighted", whole, stored["total_weighted"], LOSS, report)
    for name, value in plain.items():
        _relative(f"{file}:loss_{name}", value, stored[f"loss_{name}"], LOSS, report)
    for name, gradient in zip(("grad_logits", "grad_boxes"), gradients, strict=True):
        report.close(f"{file}:{name}", "device", gradient, stored[name], GRADIENT / 10, relative=True)
    assigned = match(loss.matcher, *values, targets)
    report.equal(f"{file}:assigned_gt", assigned.ravel().tolist(), stored["assigned_gt"].ravel().tolist(), "device")
    if "fed_classes" in stored:
        judged = jnp.zeros((len(rows), values[0].shape[-1])).at[:, stored["fed_classes"]].set(1)
        plain = step(*values, targets, judged)[0][1]
        for key in stored:
            if key.startswith("fed_loss_"):
                _relative(f"{file}:{key}", plain[key.removeprefix("fed_loss_")], stored[key], LOSS, report)
    nothing = targets._replace(valid=np.zeros_like(targets.valid))
    plain = step(*values, nothing)[0][1]
    for key in stored:
        if key.startswith("empty_loss_"):
            _relative(f"{file}:{key}", plain[key.removeprefix("empty_loss_")], stored[key], LOSS, report)


def denoising(
    path: Any, loss: SetPrediction, network: Network, file: str, stored: Any, report: Report
) -> dict[str, np.ndarray]:
    """DiffusionDet's loss from recorded noise; returns the gradients under official names."""
    level = stored["t"].astype(np.float32)
    drawn = _draws(stored, level, level)
    x = path.noisy(start_boxes(truth(stored), drawn, path.scale), drawn.noise, drawn.level)
    shown = path.place(x, drawn.level, truth(stored).size)
    report.close(f"{file}:x_boxes_abs", "device", shown, stored["x_boxes_abs"], PIXELS)
    seen, gradients = _train(BoxDenoising(path, loss), network, drawn, file, stored, report)
    for name, got, tolerance in zip(("logits", "pred_boxes"), seen, NETWORK, strict=True):
        report.close(f"{file}:{name}", "device", got, stored[name], tolerance)
    return gradients


def two_levels(
    path: Any, loss: SetPrediction, network: Network, file: str, stored: Any, report: Report
) -> dict[str, np.ndarray]:
    """ConsistencyDet's loss from recorded noise; returns the gradients under official names."""
    place = path.trained - 1 - stored["step_index"]  # the release counts from the noisiest level
    spread = path.trained, path.sigma_min, path.sigma_max, path.rho
    levels = {"n1": karras_level(place, *spread), "n": karras_level(place - 1, *spread)}
    drawn = _draws(stored, *(level.astype(np.float32) for level in levels.values()))
    clean, size = start_boxes(truth(stored), drawn, path.scale), truth(stored).size
    for name, level in (("n1", drawn.level), ("n", drawn.near)):
        _relative(f"{file}:sigma_{name}", levels[name], stored[f"sigma_{name}"], LOSS / 10, report)
        report.close(f"{file}:time_cond_{name}", "device", path.told(level), stored[f"time_cond_{name}"], 1e-4)
        x = path.noisy(clean, drawn.noise, level)
        report.close(f"{file}:x_{name}", "device", x, stored[f"x_{name}"], CODED, relative=True)
        shown = path.place(x, level, size)
        report.close(f"{file}:head_in_boxes_{name}", "device", shown, stored[f"head_in_boxes_{name}"], PIXELS)
    (logits, boxes), gradients = _train(TwoLevels(path, loss), network, drawn, file, stored, report)
    half = len(size)
    for name, part in (("n1", slice(0, half)), ("n", slice(half, None))):
        level = levels[name].astype(np.float32)
        answer = path.answer(clean, boxes[:, part], level, size)
        report.close(f"{file}:logits_{name}", "device", logits[:, part], stored[f"logits_{name}"], NETWORK[0])
        report.close(f"{file}:boxes_{name}", "device", answer, stored[f"boxes_{name}"], NETWORK[1])
    return gradients


def _train(
    objective: Any, network: Network, drawn: Draws, file: str, stored: Any, report: Report
) -> tuple[tuple[jax.Array, jax.Array], dict[str, np.ndarray]]:
    """Rows of an objective's terms; what the head answered, and the gradients under official names."""
    batch = Truth(truth(stored), jnp.ones(len(stored["gt_mask"])))

    def total(params):
        answers = []

        def head(boxes: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
            copies = len(boxes) // len(batch.rows)
            levels = tuple(jnp.tile(level, (copies, 1, 1, 1)) for level in network.features)
            answers.append(network.head.apply({**network.variables, "params": params}, levels, boxes, time)[0])
            return answers[-1]

        terms = objective.loss(Heads(head, head), batch, drawn, jnp.int32(0))
        return _total(terms), (_values(terms, weighted=True), answers[0])

    step = jax.jit(jax.value_and_grad(total, has_aux=True))
    (whole, (values, seen)), gradients = step(network.variables["params"])
    _relative(f"{file}:total", whole, stored["total"], TRAINING, report)
    for name, value in values.items():
        _relative(f"{file}:weighted_loss_{name}", value, stored[f"weighted_loss_{name}"], TRAINING, report)
    return seen, to_official({"params": {"head": jax.device_get(gradients)}})


def _draws(stored: Any, level: Any, near: Any) -> Draws:
    choice = np.zeros(stored["gt_mask"].shape, np.float32)
    noise, filler = (jnp.asarray(stored[name]) for name in ("noise", "placeholder_noise"))
    return Draws(noise, filler, jnp.asarray(choice), jnp.asarray(level), jnp.asarray(near))


def _total(terms: Mapping[str, Term]) -> jax.Array:
    return jnp.stack([term.coefficient * term.sum / term.weight for term in terms.values()]).sum()


def _values(terms: Mapping[str, Term], *, weighted: bool = False) -> dict[str, jax.Array]:
    """By the release's names; those of two noise levels are added."""
    out: dict[str, Any] = {}
    for name, term in terms.items():
        kind, _, stage = name.removeprefix(NEAR).partition("_")
        theirs = NAMES[kind] + (f"_{stage}" if stage else "")
        out[theirs] = out.get(theirs, 0.0) + term.sum / term.weight * (term.coefficient if weighted else 1.0)
    return out


def _relative(name: str, got: Any, want: Any, tolerance: float, report: Report) -> None:
    report.close(name, "device", got, want, tolerance, relative=True)


def _norms(
    file: str, got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], norms: Mapping[str, float], report: Report
) -> None:
    """Gradients by their norms: each one's own, or that of what two differ by; against the largest of all, since
    biases in front of a norm have next to none."""
    floor = 1e-6 * max(norms.values())
    report.equal(f"{file}:names of gradients", sorted(got), sorted(norms))
    errors = [0.0]
    for name in set(norms) & set(got):
        own = np.linalg.norm(got[name] - want[name]) if want else abs(np.linalg.norm(got[name]) - norms[name])
        errors.append(float(own) / max(norms[name], floor))
    report.close(f"{file}:gradients ({len(norms)})", "device", max(errors), 0.0, GRADIENT)
