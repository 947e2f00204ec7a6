# pyright: reportMissingImports=false
"""Matching and set losses of a detector's six stages beside the usual PyTorch form: loops over stages and images.

    python -m tests.benchmarks.set_loss_torch [--threads=1] [--calls=10]

Two images, 500 boxes, 80 classes, 6 stages, up to 32 targets; forward and backward.  Both forms first have to give the
same losses.  What PyTorch runs is written after the published algorithm, image by image as the releases do it.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags

from train.objectives.matching import Targets
from train.objectives.set_prediction import SetPrediction

THREADS = flags.DEFINE_integer("threads", 1, "Of PyTorch; XLA's follow the cores that the process may use (taskset).")
CALLS = flags.DEFINE_integer("calls", 10, "Timed calls of each form.")
STAGES, IMAGES, BOXES, CLASSES, TARGETS = 6, 2, 500, 80, 32
SIDE = 512


def main(argv: list[str]) -> None:
    """Compares the losses, then the times."""
    del argv
    torch.set_num_threads(THREADS.value)
    logits, boxes, targets = case()
    loss = SetPrediction(count="release")

    def total(logits: jax.Array, boxes: jax.Array) -> jax.Array:
        terms = loss(logits, boxes, targets, jnp.ones(IMAGES))
        return jnp.stack([term.coefficient * term.sum / term.weight for term in terms.values()]).sum()

    step = jax.jit(jax.value_and_grad(total, (0, 1)))
    ours = lambda: jax.block_until_ready(step(logits, boxes))  # noqa: E731
    theirs = lambda: torch_step(logits, boxes, targets)  # noqa: E731
    (value, gradient), (other, other_gradient) = ours(), theirs()
    difference = abs(float(value) - other) / other
    apart = float(np.abs(np.asarray(gradient[1]) - other_gradient).max() / np.abs(other_gradient).max())
    print(f"loss {float(value):.5f} and {other:.5f}, {difference:.1e} apart; gradients of the boxes {apart:.1e} apart")
    if difference > 1e-4 or apart > 1e-3:
        raise SystemExit("the two forms compute different things: not timed")
    times = {"murmuration": milliseconds(ours), "PyTorch": milliseconds(theirs)}
    for name, taken in times.items():
        print(f"{name:<12} {taken:8.2f} ms")
    ratio = times["PyTorch"] / times["murmuration"]
    print(f"ratio {ratio:.1f}; {THREADS.value} thread(s) of PyTorch, {CALLS.value} calls of each")


def case() -> tuple[np.ndarray, np.ndarray, Targets]:
    """Boxes near the targets, as in the middle of a training, and others."""
    r = np.random.default_rng(0)
    centre, size = r.uniform(60, 450, (IMAGES, TARGETS, 2)), r.uniform(20, 120, (IMAGES, TARGETS, 2))
    wanted = np.concatenate([centre - size / 2, centre + size / 2], -1).clip(0, SIDE).astype(np.float32)
    valid = np.arange(TARGETS) < np.array([[20], [7]])
    nearest = r.integers(0, TARGETS, (STAGES, IMAGES, BOXES))
    boxes = np.take_along_axis(np.broadcast_to(wanted, (STAGES, *wanted.shape)), nearest[..., None], 2)
    boxes = boxes + r.normal(0, 12, (*boxes.shape[:-1], 4)).astype(np.float32)
    low, high = np.minimum(boxes[..., :2], boxes[..., 2:] - 1), np.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    logits = r.normal(-3, 1.5, (STAGES, IMAGES, BOXES, CLASSES)).astype(np.float32)
    labels = r.integers(0, CLASSES, (IMAGES, TARGETS)).astype(np.int32)
    size = np.full((IMAGES, 2), SIDE, np.int32)
    return logits, np.concatenate([low, high], -1).astype(np.float32), Targets(wanted, labels, valid, size)


def torch_step(logits: np.ndarray, boxes: np.ndarray, targets: Targets) -> tuple[float, np.ndarray]:
    """Loss of all stages, and the gradient of the boxes."""
    said, placed = torch.tensor(logits, requires_grad=True), torch.tensor(boxes, requires_grad=True)
    wanted = [torch.tensor(np.asarray(targets.boxes)[i][targets.valid[i]]) for i in range(IMAGES)]
    labels = [torch.tensor(np.asarray(targets.labels)[i][targets.valid[i]]).long() for i in range(IMAGES)]
    total = torch.zeros(())
    for stage in range(STAGES):
        pairs = [torch_match(said[stage, i], placed[stage, i], wanted[i], labels[i]) for i in range(IMAGES)]
        count = max(1, sum(len(rows) for rows, _ in pairs))
        onehot = torch.zeros(IMAGES, BOXES, CLASSES)
        for i, (rows, columns) in enumerate(pairs):
            onehot[i, rows, labels[i][columns]] = 1.0
            mine, true = placed[stage, i][rows], wanted[i][columns]
            l1 = ((mine - true).abs() / SIDE).sum()
            total = total + (5.0 * l1 + 2.0 * (1 - torch_overlap(mine, true)[1]).sum()) / count
        p = said[stage].sigmoid()
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(said[stage], onehot, reduction="none")
        wrong, balance = p * (1 - onehot) + (1 - p) * onehot, 0.25 * onehot + 0.75 * (1 - onehot)
        total = total + 2.0 * (balance * entropy * wrong**2).sum() / count
    total.backward()
    assert placed.grad is not None
    return float(total.detach()), placed.grad.numpy()


@torch.no_grad()
def torch_match(logits: Any, boxes: Any, wanted: Any, labels: Any) -> tuple[Any, Any]:
    """SimOTA of one image: (boxes, their targets)."""
    p = logits.sigmoid()
    positive = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
    iou, giou = torch_overlap(boxes[:, None], wanted[None])
    cost = 5.0 * (boxes[:, None] - wanted[None]).abs().sum(-1) / SIDE
    cost = cost + 2.0 * (positive - negative)[:, labels] - 2.0 * giou
    centre = (boxes[:, :2] + boxes[:, 2:])[:, None] / 2
    middle, size = (wanted[:, :2] + wanted[:, 2:]) / 2, wanted[:, 2:] - wanted[:, :2]
    inside = ((centre > wanted[:, :2]) & (centre < wanted[:, 2:])).all(-1)
    around = ((centre - middle).abs() < 2.5 * size).all(-1)
    cost = cost + 100.0 * ~(inside & around)
    cost[~(inside | around).any(1)] += 10_000.0
    match = torch.zeros_like(cost)
    shares = iou.topk(5, dim=0).values.sum(0).int().clamp(min=1)
    for j in range(len(wanted)):
        match[cost[:, j].topk(int(shares[j]), largest=False).indices, j] = 1.0
    if (several := match.sum(1) > 1).any():
        best = cost[several].argmin(1)
        match[several] = 0.0
        match[several, best] = 1.0
    while (left := match.sum(0) == 0).any():
        cost[match.sum(1) > 0] += 100_000.0
        for j in left.nonzero()[:, 0]:
            match[cost[:, j].argmin(), j] = 1.0
    rows = (match.sum(1) > 0).nonzero()[:, 0]
    return rows, match[rows].argmax(1)


def torch_overlap(a: Any, b: Any) -> tuple[Any, Any]:
    """IoU and generalised IoU of boxes that broadcast."""

    def area(low: Any, high: Any) -> Any:
        return (high - low).clamp(min=0).prod(-1)

    both = area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - both
    hull = area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    return both / union, both / union - (hull - union) / hull


def milliseconds(call: Callable[[], Any]) -> float:
    """Median."""
    taken = []
    for _ in range(CALLS.value):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return 1e3 * statistics.median(taken)


if __name__ == "__main__":
    app.run(main)
