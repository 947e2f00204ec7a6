"""Every backbone against the release's numbers, and the promise that padding changes nothing."""

import functools
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.verify import f5_network
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report
from models.convert import f5_tts
from models.functional import functional
from tests.models import golden

SMALL = {"dim": 16, "depth": 4, "heads": 2, "dim_head": 8, "ff_mult": 2, "mel_dim": 5, "text_num_embeds": 9,
         "conv_pos_groups": 4, "conv_pos_kernel": 7}  # fmt: skip
CASES = {
    "dit": ("DiT", {"text_dim": 8, "conv_layers": 1, "depth": 2}),
    "unett": ("UNetT", {"pe_attn_head": 1, "text_mask_padding": False}),
    "unett_add": ("UNetT", {"skip_connect_type": "add", "text_dim": 8, "conv_layers": 1, "qk_norm": "rms_norm"}),
    "unett_none": ("UNetT", {"skip_connect_type": "none", "depth": 2}),
    "mmdit": ("MMDiT", {"depth": 3}),
    "mmdit_norm": ("MMDiT", {"depth": 2, "qk_norm": "rms_norm", "text_mask_padding": False}),
    "mmdit_one": ("MMDiT", {"depth": 1}),
}


def make(name, **options):
    backbone, own = CASES[name]
    kwargs = {**SMALL, **own, **options}
    return functional(lambda rngs: f5_tts.BACKBONES[backbone](**kwargs, rngs=rngs))


@functools.cache
def randomised(name):
    """Variables without the zeros of the initialisation, so that every part matters."""
    leaves, tree = jax.tree.flatten(make(name).abstract())
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(size=p.shape) * 0.2, p.dtype) for p in leaves])


def example(t=11):
    rng = np.random.default_rng(1)
    x, cond = rng.normal(size=(2, 3, t, 5)).astype(np.float32)
    text = rng.integers(0, 9, (3, 6)).astype(np.int32)
    text[1, 3:] = -1
    return x, cond, text, np.float32([0.1, 0.5, 0.9]), np.int32([t, 4, 8])


@functools.cache
def runner(name, padding="exact"):
    model = make(name, padding=padding)
    run = jax.jit(lambda v, *args: model.apply(v, *args)[0])
    return functools.partial(run, randomised(name))


@pytest.mark.parametrize("variant", golden.OTHERS)
def test_equals_the_release_in_reference_mode(variant):
    """All cases of the forward pass, and the outputs of every part where they are stored."""
    report, folder = Report(quiet=True), GoldenFolder(golden.GOLDEN)
    f5_network.forward(folder, f5_network.Variants(folder), variant, report)
    stored = golden.load(f"forward_{variant}")
    assert {row.name.split(":")[1] for row in report.rows} == set(stored) and not report.failed, report.failed


@pytest.mark.parametrize("variant", ["dit_v1", "dit_extra"])
def test_parts_equal_the_release(variant):
    """Walks through the parts one by one; the first one to fail is where a change departs from the release."""
    model, variables = golden.build(variant, "reference")
    got = f5_network.intermediates(model, variables, golden.inputs())
    wanted = {k[7:]: v for k, v in golden.load(f"forward_{variant}").items() if k.startswith("inter__")}
    assert len(wanted) >= 6
    for name, value in wanted.items():
        assert np.abs(got[name] - value).max() < 2e-5, name


@pytest.mark.parametrize("name", [name for name in CASES if name != "dit"])
def test_a_padded_batch_equals_the_release_on_rows_alone(name):
    """Exact mode on a batch with junk behind each row, reference mode on every row alone and unpadded."""
    x, cond, text, time, lengths = example()
    whole = runner(name)(x, cond, text, time, lengths)
    for row, n in enumerate(lengths):
        one = slice(row, row + 1)
        words = text[one, : int((text[row] >= 0).sum())]
        alone = runner(name, "reference")(x[one, :n], cond[one, :n], words, time[one])
        np.testing.assert_allclose(whole[row, :n], alone[0], atol=2e-5)
        assert not np.any(whole[row, n:])
    assert np.abs(whole).max() > 0.1


@pytest.mark.parametrize("name", ["unett", "unett_add", "mmdit"])
def test_loop_forms_and_remat_agree(name):
    """Scanned or unrolled, whatever is recomputed: the same function with the same gradients."""
    args = example()
    wanted = None
    for options in [{}, {"scan_layers": False, "remat": "dots_no_batch"}, {"remat": "full"}]:
        model = make(name, **options)
        loss = jax.jit(jax.value_and_grad(lambda v, m=model: jnp.square(m.apply(v, *args)[0]).sum()))
        got = loss(randomised(name))
        wanted = got if wanted is None else wanted
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize("name", ["unett", "mmdit"])
def test_drop_flags_are_per_row_and_dropout_knows_no_neighbours(name):
    x, cond, text, time, lengths = example()
    run, rows = runner(name), np.array([False, True, False])
    mixed, plain = run(x, cond, text, time, lengths, rows, rows), run(x, cond, text, time, lengths, ~rows, ~rows)
    everything = run(x, cond * 0, text, time, lengths, rows | True, rows | True)
    np.testing.assert_allclose(mixed[1], everything[1], atol=1e-6)
    np.testing.assert_allclose(plain[::2], everything[::2], atol=1e-6)
    assert np.abs(mixed - everything)[::2].max() > 1e-2

    keys = jax.random.split(jax.random.key(3), 3)
    nothing = rows & False
    whole = run(x, cond, text, time, lengths, nothing, nothing, keys)
    one = slice(1, 2)
    alone = run(x[one, :4], cond[one, :4], text[one], time[one], lengths[one], nothing[one], nothing[one], keys[one])
    np.testing.assert_allclose(whole[1, :4], alone[0], atol=2e-5)
    assert np.abs(whole - run(x, cond, text, time, lengths)).max() > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_axes_cover_every_parameter_once(name):
    axes = importlib.import_module(f5_tts.BACKBONES[CASES[name][0]].__module__).AXES
    for path, leaf in jax.tree_util.tree_flatten_with_path(make(name).abstract()["params"])[0]:
        key = "/".join(k.key for k in path)
        rules = [logical for pattern, logical in axes if re.fullmatch(pattern, key)]
        assert len(rules) == 1, f"{key} matches {len(rules)} rules"
        assert len(rules[0]) == leaf.ndim, f"{key} has shape {leaf.shape}, its rule {rules[0]}"


def test_starting_points():
    """AdaLN-zero: a fresh MMDiT predicts exactly 0; the U-Net starts like any transformer."""

    def fresh(name):
        model = make(name)
        return jax.jit(lambda key, *args: model.apply(model.init(key), *args)[0])(jax.random.key(0), *example())

    assert not np.any(fresh("mmdit")) and np.abs(fresh("unett")).max() > 0.1


def test_text_positions_end_where_the_tables_of_the_release_do():
    """Two symbols behind the last entry of MMDiT's table have the same vector, two before it have not."""
    model, text = make("mmdit_one"), np.full((1, 1027), 4)
    encoded = jax.jit(lambda v: model.apply(v, text, None, 5, method="encode_text")[0])(randomised("mmdit_one"))
    np.testing.assert_array_equal(encoded.states[0, 1023], encoded.states[0, 1026])
    assert np.abs(encoded.states[0, 1022] - encoded.states[0, 1023]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unett", {"depth": 3}, "depth is 3"),
        ("unett", {"skip_connect_type": "multiply"}, "skip_connect_type"),
        ("unett", {"padding": "both"}, "padding"),
        ("mmdit", {"padding": "both"}, "padding"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options).abstract()
