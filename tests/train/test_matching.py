"""Matchers against the golden numbers, plain loops and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from models.ops.boxes import iou, pairwise
from tests.train.detection import GOLDEN, targets_of
from train.objectives.matching import NONE, Costs, Hungarian, SimOTA, Targets, match, repair

SIMOTA = SimOTA()
ONE = jax.jit(SIMOTA)


def scene(seed, boxes=12, targets=6, valid=4, classes=3):
    """Random predictions and targets of one image, some of them alike."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (boxes + targets, 2))
    both = np.concatenate([corner, corner + rng.uniform(4, 40, (boxes + targets, 2))], -1).astype(np.float32)
    predicted, wanted = both[:boxes], both[boxes:]
    if seed % 3 == 0:
        wanted[: targets // 2] = wanted[0] + rng.uniform(-0.1, 0.1, (targets // 2, 4))  # crowds want the same boxes
    logits = rng.normal(0, 2, (boxes, classes)).astype(np.float32)
    labels = rng.integers(0, classes, targets).astype(np.int32)
    size = np.array([100, 100], np.int32)
    return logits, predicted, Targets(wanted, labels, np.arange(targets) < valid, size)


def plain_simota(cost, overlap, valid, most=5):
    """The rule in loops: claims, contested boxes to their cheapest target, then orphans one by one."""
    boxes, owner = len(cost), {}
    claims = {
        j: sorted(range(boxes), key=lambda i: cost[i, j])[
            : max(1, int(np.float32(sorted(overlap[:, j])[-most:]).sum()))
        ]
        for j in np.flatnonzero(valid)
    }
    for i in range(boxes):
        wanting = [j for j in claims if i in claims[j]]
        if wanting:
            owner[i] = wanting[0] if len(wanting) == 1 else int(cost[i].argmin())
    while orphans := [j for j in claims if j not in owner.values()]:
        held = list(owner.values())
        free = [i for i in range(boxes) if i not in owner]
        able = free or [i for i in owner if held.count(owner[i]) > 1]
        if not able:
            break
        i, j = min(itertools.product(able, orphans), key=lambda pair: cost[pair])
        owner[i] = j
    return [owner.get(i, NONE) for i in range(boxes)]


def test_simota_gives_the_golden_assignments():
    stored = np.load(GOLDEN / "matcher.npz")
    targets = targets_of(stored)
    got = match(SIMOTA, stored["logits"][None], stored["pred_boxes"][None], targets)[0]
    np.testing.assert_array_equal(got, stored["assigned_gt"])


def test_simota_is_the_plain_rule_with_crowds_and_without_targets():
    for seed in range(24):
        logits, boxes, targets = scene(seed, boxes=(5, 12)[seed % 2], valid=seed % 6)
        cost, overlap = SIMOTA.cost(logits, boxes, targets), pairwise(iou, boxes, targets.boxes)
        want = plain_simota(np.asarray(cost), np.asarray(overlap), targets.valid)
        assert np.asarray(ONE(logits, boxes, targets)).tolist() == want, seed


def test_every_target_has_a_box_of_its_own_where_there_are_enough():
    """Three targets that nearly coincide, of which the release drops one; and as many targets as boxes."""
    stored = np.load(GOLDEN / "matcher_quirk.npz")
    wanted = targets_of(stored)
    assigned = np.asarray(match(SIMOTA, stored["logits"][None], stored["pred_boxes"][None], wanted))[0, 0]
    assert set(assigned[assigned >= 0]) == set(np.flatnonzero(wanted.valid[0]))
    dropped = set(np.flatnonzero(wanted.valid[0])) - set(stored["assigned_gt"][stored["assigned_gt"] >= 0])
    assert dropped  # what the release does
    for seed in range(0, 30, 3):
        logits, boxes, targets = scene(seed, boxes=6, targets=6, valid=6)
        assert sorted(np.asarray(ONE(logits, boxes, targets)).tolist()) == list(range(6))


def test_fewer_boxes_than_targets_end_and_use_every_box():
    for seed in range(6):
        logits, boxes, targets = scene(seed, boxes=3, targets=6, valid=6)
        for assigned in (
            np.asarray(ONE(logits, boxes, targets)),
            np.asarray(jax.jit(Hungarian())(logits, boxes, targets)),
        ):
            assert len(set(assigned.tolist())) == 3 and (assigned >= 0).all()


def test_padding_and_order_change_nothing():
    logits, boxes, targets = scene(3)
    alone = Targets(*(a[:4] for a in targets[:3]), targets.size)
    np.testing.assert_array_equal(ONE(logits, boxes, targets), ONE(logits, boxes, alone))
    order = np.random.default_rng(0).permutation(len(boxes))
    np.testing.assert_array_equal(
        ONE(logits[order], boxes[order], targets), np.asarray(ONE(logits, boxes, targets))[order]
    )


def test_hungarian_is_the_cheapest_of_all_assignments():
    hungarian = jax.jit(Hungarian())
    for seed in range(8):
        logits, boxes, targets = scene(seed, boxes=6, targets=5, valid=seed % 5)
        cost = np.asarray(Costs()(logits, boxes, targets))
        count = int(targets.valid.sum())
        ways = itertools.permutations(range(6), count)
        best = min(sum(cost[i, j] for j, i in enumerate(way)) for way in ways)
        assigned = np.asarray(hungarian(logits, boxes, targets))
        assert sorted(assigned[assigned >= 0]) == list(range(count))
        total = sum(cost[i, j] for i, j in enumerate(assigned) if j >= 0)
        np.testing.assert_allclose(total, best, rtol=1e-5, atol=1e-5)


def test_repair_takes_from_targets_with_several_only_where_no_box_is_free():
    cost = jnp.array([[0.0, 3.0], [0.0, 1.0], [0.0, 9.0]])
    valid = jnp.array([True, True])
    assert repair(jnp.array([0, 0, NONE]), cost, valid).tolist() == [0, 0, 1]
    assert repair(jnp.array([0, 0, 0]), cost, valid).tolist() == [0, 1, 0]
