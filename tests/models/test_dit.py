"""The DiT against the release's numbers, and the promise that padding changes nothing."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.dit import AXES, DiT
from models.functional import functional
from tests.models import golden

TOLERANCE = 2e-5


MASKED = ("mask", "mask_dropaudio", "mask_droptext", "mask_dropboth", "mask_scalar_time", "mask_longtext")


def case(name: str):
    """Arguments of ``DiT.__call__`` for a golden case."""
    i = golden.inputs()
    text = i["longtext"] if "longtext" in name else np.pad(i["text"], ((0, 0), (0, 45)), constant_values=-1)
    time = np.full(3, 0.25, np.float32) if "scalar_time" in name else i["time"]
    drop_audio = np.full(3, "dropaudio" in name or "dropboth" in name)
    drop_text = np.full(3, "droptext" in name or "dropboth" in name)
    return i["x"], i["cond"], text, time, i["lens"], drop_audio, drop_text


@functools.cache
def outputs(variant: str, padding: str) -> dict[str, np.ndarray]:
    """All golden cases of a variant, run as two batches: one with lengths, one without."""
    names = {"mask": MASKED, "nomask": ("nomask", "nomask_dropboth")}
    run, out = golden.forward(variant, padding), {}
    for kind, group in names.items():
        args = [np.concatenate(a) for a in zip(*map(case, group), strict=True)]
        if kind == "nomask":
            args[4] = None
        out.update(zip(group, np.split(run(*args), len(group)), strict=True))
    out["mask_cfginfer"] = np.concatenate([out["mask"], out["mask_dropboth"]])
    return out


@pytest.mark.parametrize("variant", golden.VARIANTS)
def test_equals_the_release_in_reference_mode(variant):
    got = outputs(variant, "reference")
    for name, wanted in golden.load(f"forward_{variant}").items():
        if name.startswith("out__"):
            error = np.abs(got[name[5:]] - wanted).max()
            assert error < TOLERANCE, f"{name}: {error}"


@pytest.mark.parametrize("variant", ["dit_v1", "dit_v0"])
def test_padded_batch_equals_golden_single_rows(variant):
    got = outputs(variant, "exact")
    single, lengths = golden.load(f"single_{variant}"), golden.inputs()["lens"]
    for row, n in enumerate(lengths):
        assert np.abs(got["mask"][row, :n] - single[f"cond_row{row}"]).max() < TOLERANCE
        assert np.abs(got["mask_dropboth"][row, :n] - single[f"uncond_row{row}"]).max() < TOLERANCE
        assert (got["mask"][row, n:] == 0).all()
    np.testing.assert_allclose(got["nomask"], golden.load(f"forward_{variant}")["out__nomask"], atol=TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"text_mask_padding": False, "pe_attn_head": 1},
        {"text_average_upsampling": True, "qk_norm": "rms_norm", "long_skip_connection": True},
        {"conv_layers": 0, "text_dim": None},
    ],
    ids=str,
)
def test_padding_content_and_amount_change_nothing(options):
    """Each row of a batch with junk behind it equals the row alone."""
    model = tiny(**options)
    variables = randomised(model)
    x, cond, text, time, lengths = example()
    run = functools.partial(jax.jit(lambda v, *args: model.apply(v, *args)[0]), variables)
    whole = run(x, cond, text, time, lengths)
    for row, n in list(enumerate(lengths))[1:]:
        one = slice(row, row + 1)
        alone = run(x[one, :n], cond[one, :n], text[one], time[one], lengths[one])
        np.testing.assert_allclose(whole[row, :n], alone[0], atol=1e-5)
        assert not np.any(whole[row, n:])


def tiny(**options):
    kwargs = {
        "dim": 16, "depth": 2, "heads": 2, "dim_head": 8, "ff_mult": 2, "mel_dim": 5, "text_num_embeds": 9,
        "text_dim": 8, "conv_layers": 2, "conv_pos_groups": 4, "conv_pos_kernel": 7, **options,
    }  # fmt: skip
    return functional(lambda rngs: DiT(**kwargs, rngs=rngs))


def randomised(model, seed=0):
    """Variables without the zeros of the initialisation, so that every part matters."""
    leaves, tree = jax.tree.flatten(model.abstract())
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(size=p.shape) * 0.15, p.dtype) for p in leaves])


def example(t=11, seed=1):
    rng = np.random.default_rng(seed)
    x, cond = rng.normal(size=(2, 3, t, 5)).astype(np.float32)
    text = rng.integers(0, 9, (3, 6)).astype(np.int32)
    text[1, 3:] = -1
    return x, cond, text, np.float32([0.1, 0.5, 0.9]), np.int32([t, 4, 8])


def test_starts_as_the_zero_map():
    """AdaLN-zero: a fresh model predicts exactly 0."""
    model = tiny()
    out = jax.jit(lambda key, *args: model.apply(model.init(key), *args)[0])(jax.random.key(0), *example())
    assert out.shape == (3, 11, 5) and not np.any(out)


def test_loop_forms_and_remat_agree():
    """Scanned or unrolled, whatever is recomputed: the same function with the same gradients."""
    args = example()
    wanted = None
    for options in [{}, {"scan_layers": False}, {"remat": "full"}, {"remat": "dots_no_batch", "scan_layers": False}]:
        model = tiny(**options)
        loss = jax.jit(jax.value_and_grad(lambda v, m=model: jnp.square(m.apply(v, *args)[0]).sum()))
        got = loss(randomised(model))
        wanted = got if wanted is None else wanted
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_drop_flags_are_per_row_and_really_drop():
    model = tiny()
    variables = randomised(model)
    x, cond, text, time, lengths = example()
    step = jax.jit(lambda v, c, s, a, b: model.apply(v, x, c, s, time, lengths, a, b)[0])
    run = functools.partial(step, variables)
    rows = np.array([False, True, False])
    mixed = run(cond, text, rows, rows)
    np.testing.assert_allclose(mixed[1], run(cond * 0, text, rows * False, ~rows | True)[1], atol=1e-6)
    np.testing.assert_allclose(mixed[::2], run(cond, text, rows * False, rows * False)[::2], atol=1e-6)


def test_dropout_by_row_ignores_batch_and_padding():
    """With one key per row a row's dropout does not depend on its neighbours nor on padding."""
    model = tiny(dropout=0.5)
    variables = randomised(model)
    x, cond, text, time, lengths = example()
    keys = jax.random.split(jax.random.key(3), 3)
    run = functools.partial(jax.jit(lambda v, k, *a: model.apply(v, *a, key=k)[0]), variables)
    whole = run(keys, x, cond, text, time, lengths)
    alone = run(keys[1:2], x[1:2, :4], cond[1:2, :4], text[1:2], time[1:2], lengths[1:2])
    np.testing.assert_allclose(whole[1, :4], alone[0], atol=1e-5)
    assert np.abs(whole - run(jax.random.split(jax.random.key(4), 3), x, cond, text, time, lengths)).max() > 1e-3


def test_gradients_are_finite_with_empty_text_and_padding():
    model = tiny(text_average_upsampling=True)
    x, cond, text, time, lengths = example()
    text[:] = -1
    loss = jax.grad(lambda v: jnp.abs(model.apply(v, x, cond, text, time, lengths)[0] - 1).sum())
    grads = jax.jit(lambda key: loss(model.init(key)))(jax.random.key(0))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_bfloat16_compute_keeps_float32_parameters_and_output():
    model, wide = tiny(dtype=jnp.bfloat16), tiny()
    variables = randomised(wide)
    args = example()
    narrow, wanted = (jax.jit(lambda v, m=m: m.apply(v, *args)[0])(variables) for m in (model, wide))
    assert narrow.dtype == jnp.float32
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(model.abstract()))
    assert np.abs(narrow - wanted).max() < 0.05 * np.abs(wanted).max()


def test_velocity_differentiates_forward():
    """MeanFlow and sCM need directional derivatives of the network in forward mode: equal to a finite difference."""
    model = tiny()
    variables = randomised(model)
    x, cond, text, time, lengths = example()
    f = functools.partial(jax.jit(lambda v, x: model.apply(v, x, cond, text, time, lengths)[0]), variables)
    _, tangent = jax.jvp(f, (jnp.asarray(x),), (jnp.ones_like(x),))
    difference = (f(x + 1e-2) - f(x - 1e-2)) / 2e-2
    np.testing.assert_allclose(tangent, difference, atol=2e-2 * np.abs(difference).max())


@pytest.mark.parametrize("options", [{}, {"qk_norm": "rms_norm", "long_skip_connection": True}, {"conv_layers": 0}])
def test_axes_cover_every_parameter_once(options):
    paths = jax.tree_util.tree_flatten_with_path(tiny(**options).abstract()["params"])[0]
    for path, leaf in paths:
        name = "/".join(k.key for k in path)
        rules = [axes for pattern, axes in AXES if re.fullmatch(pattern, name)]
        assert len(rules) == 1, f"{name} matches {len(rules)} rules"
        assert len(rules[0]) == leaf.ndim, f"{name} has shape {leaf.shape}, its rule {rules[0]}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "both"}, "padding"),
        ({"qk_norm": "l2"}, "qk_norm"),
        ({"remat": "some"}, "remat"),
        ({"text_average_upsampling": True, "text_mask_padding": False}, "text_mask_padding"),
        ({"conv_pos_groups": 3}, "groups"),
    ],
)
def test_bad_options_are_named(options, message):
    model = tiny(**options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda v: model.apply(v, *example())[0], model.abstract())
