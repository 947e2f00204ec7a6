"""Backbones and pyramid: published sizes, padding that nobody notices, rules for every parameter."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.convert.detection import BUFFERS, official_names, to_official
from models.convert.f5_names import flatten
from models.detection import swin
from models.detection.detector import Detector, axes
from models.detection.head import DynamicHead
from models.detection.resnet import FrozenNorm, ResNet
from models.detection.swin import Swin
from models.functional import Functional, functional
from tests.models import detection, detection_numpy
from train.mesh import build_mesh
from train.sharding import param_specs


def published(backbone, classes: int = 80) -> Functional:
    return functional(lambda rngs: Detector(num_classes=classes, backbone=backbone, rngs=rngs))


def count(tree) -> float:
    """Millions."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6


@pytest.mark.parametrize(
    "backbone, classes, millions",
    [
        (functools.partial(ResNet, depth=50), 80, 110.67),
        (functools.partial(ResNet, depth=101), 80, 129.61),
        (Swin, 80, 173.47),
        (functools.partial(ResNet, depth=50), 1203, 112.41),
    ],
    ids=["R50", "R101", "Swin-B", "LVIS R50"],
)
def test_published_sizes_and_rules_that_cover_them(backbone, classes, millions):
    params = published(backbone, classes).abstract()["params"]
    assert count(params) == pytest.approx(millions, abs=0.006)
    if classes == 80:
        assert count(params["head"]) == pytest.approx(83.87, abs=0.005)
        assert count(params["head"]["stages"]) / 6 == pytest.approx(13.76, abs=0.005)
    detection.check_axes(axes(backbone), params)
    _, coverage = param_specs(axes(backbone), params, build_mesh({"fsdp": 2, "tensor": 4}, jax.devices()[:8]))
    assert not coverage.unmatched
    whole = sum(row.bytes_per_device for row in coverage.rows if not any(row.spec))
    assert whole < 0.02 * 4e6 * count(params)  # what no device shares is small


def test_state_tensors_of_the_release_are_counted():
    names = set()
    for path, leaf in flatten(published(ResNet).abstract()):
        for name in official_names(path.split("/", 1)[1], leaf.shape):
            names.add(re.sub(r"\.self_attn\.[qkv]\.", ".self_attn.in_proj_", name))
    assert len(names | set(BUFFERS)) == 549


@pytest.mark.parametrize("backbone", detection.BACKBONES)
def test_padded_images_have_the_boxes_of_the_images_alone(backbone):
    """Whatever the padding holds; and without their size they do not."""
    model = detection.detector(backbone)
    variables = detection.randomised(model)
    images, boxes, time = detection.scene(1, size=(37, 45))
    size = np.int32([[37, 45]])
    run = functools.partial(jax.jit(lambda v, *args: model.apply(v, *args)[0]), variables)
    alone = run(np.pad(images, ((0, 0), (0, 3), (0, 3), (0, 0))), boxes, time, size)
    padded = run(np.pad(images, ((0, 0), (0, 27), (0, 19), (0, 0)), constant_values=3.0), boxes, time, size)
    np.testing.assert_allclose(padded[0], alone[0], atol=2e-4 * np.abs(alone[0]).max())
    np.testing.assert_allclose(padded[1], alone[1], atol=2e-4 * np.abs(alone[1]).max())


@pytest.mark.parametrize("backbone", detection.BACKBONES)
def test_shapes_levels_and_rules(backbone):
    images, boxes, time = detection.scene()
    for levels in (None, 1):
        model = detection.detector(backbone, levels=levels)
        found = jax.eval_shape(lambda v, m=model: m.apply(v, images, method="features")[0], model.abstract())
        most = len(detection.BACKBONES[backbone].keywords["depths"])
        assert [a.shape for a in found] == [(2, 48 >> i, 64 >> i, 16) for i in range(2, 2 + (levels or most))]
        out = jax.eval_shape(lambda v, m=model: m.apply(v, images, boxes, time)[0], model.abstract())
        assert [a.shape for a in out] == [(3, 2, 6, 5), (3, 2, 6, 4)]
    detection.check_axes(axes(detection.BACKBONES[backbone]), detection.detector(backbone).abstract()["params"])


def test_frozen_parts_get_no_gradient_and_the_rest_does():
    model = detection.detector("resnet")
    variables, (images, _, _) = detection.randomised(model), detection.scene(1, size=(32, 32))
    stats = variables["stats"]

    def total(params):
        return sum(
            jnp.square(a).sum() for a in model.apply({"params": params, "stats": stats}, images, method="features")[0]
        )

    grads = jax.jit(jax.grad(total))(variables["params"])["backbone"]
    for name, tree in grads.items():
        moves = [bool(np.any(leaf)) for leaf in jax.tree.leaves(tree)]
        assert (not any(moves)) if name in ("stem", "res2") else all(moves), name


def test_frozen_norm_is_a_batch_norm_with_given_statistics():
    r = np.random.default_rng(0)
    scale, bias, mean = r.normal(size=(3, 5)).astype(np.float32)
    var = r.uniform(0.1, 3, 5).astype(np.float32)
    norm = FrozenNorm(5)
    norm.scale[...], norm.bias[...], norm.mean[...], norm.var[...] = map(jnp.asarray, (scale, bias, mean, var))
    x = r.normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(norm(x), (x - mean) / np.sqrt(var + 1e-5) * scale + bias, atol=1e-5)


def test_windows_are_those_of_a_plain_loop():
    """Attention of a shifted block, window by window: cells attend where both lie in one window of the shifted grid
    and in one part of the image."""
    h, w, window, shift = 6, 9, 3, 1
    block = swin.Block(4, 1, window, shift=shift, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.random.default_rng(1).normal(size=(1, h, w, 4)).astype(np.float32)
    got = np.asarray(jax.jit(lambda x: block.attend(x, None))(x))[0]
    q, k, v = (np.asarray(part(x[0])) for part in (block.attn.q, block.attn.k, block.attn.v))
    table = np.asarray(block.table[...])

    def place(position, size):  # window and offset in it; the first `shift` cells form a window of their own
        window_of, offset = np.divmod(position - shift, window)
        return (window_of, offset) if position >= shift else (-1, window + position - shift)

    cells = [(row, column) for row in range(h) for column in range(w)]
    for row, column in cells:
        scores, values = [], []
        (wr, ofr), (wc, ofc) = place(row, h), place(column, w)
        for r, c in cells:
            (vr, offr), (vc, offc) = place(r, h), place(c, w)
            if (vr, vc) == (wr, wc):
                offset = (ofr - offr + window - 1) * (2 * window - 1) + ofc - offc + window - 1
                scores.append(q[row, column] @ k[r, c] / 2 + table[offset, 0])
                values.append(v[r, c])
        weights = np.exp(scores) / np.exp(scores).sum()
        wanted = block.attn.out(jnp.asarray(weights @ np.stack(values)))
        np.testing.assert_allclose(got[row, column], wanted, atol=1e-5)


def test_dropped_branches_are_whole_rows_and_keep_the_mean():
    x, keys = jnp.ones((400, 2, 2, 3)), jax.random.split(jax.random.key(0), 400)
    y = np.asarray(swin.drop_path(x, jnp.float32(0.25), keys)).reshape(400, -1)
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    assert (y == y[:, :1]).all()
    assert y.mean() == pytest.approx(1.0, abs=0.1)
    np.testing.assert_array_equal(y[7:9], np.reshape(swin.drop_path(x[:2], jnp.float32(0.25), keys[7:9]), (2, -1)))
    assert swin.drop_path(x, jnp.float32(0.25), None) is x


@pytest.mark.parametrize(
    "backbone, message",
    [
        (functools.partial(ResNet, depth=34), "depth is 34"),
        (functools.partial(Swin, depths=(2, 3), heads=(2, 2)), "even depths"),
    ],
)
def test_bad_options_are_named(backbone, message):
    with pytest.raises(ValueError, match=message):
        published(backbone).abstract()
    with pytest.raises(ValueError, match="levels is 9"):
        detection.detector("small", levels=9).abstract()
    model = functional(lambda rngs: Detector(num_classes=5, head=functools.partial(DynamicHead, stages=1), rngs=rngs))
    with pytest.raises(ValueError, match="no backbone"):
        jax.eval_shape(lambda v: model.apply(v, np.zeros((1, 8, 8, 3)), method="features")[0], model.abstract())


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
def test_features_are_those_of_plain_numpy_on_the_public_tensors(backbone):
    """Strides, borders, windows, merges and names at once, on a map that no window divides."""
    model = detection.detector(backbone)
    variables = detection.randomised(model)
    images, _, _ = detection.scene(1, size=(32, 56))
    tensors = to_official(variables)
    if backbone == "resnet":
        maps = detection_numpy.resnet(images.transpose(0, 3, 1, 2), tensors)
    else:
        maps = detection_numpy.swin(images.transpose(0, 3, 1, 2), tensors, heads=(2, 2), window=3)
    wanted = detection_numpy.fpn(maps, tensors)
    got = jax.jit(lambda v: model.apply(v, images, method="features")[0])(variables)
    assert len(got) == len(wanted)
    for level, expected in zip(got, wanted, strict=True):
        np.testing.assert_allclose(level.transpose(0, 3, 1, 2), expected, atol=2e-4 * np.abs(expected).max())
