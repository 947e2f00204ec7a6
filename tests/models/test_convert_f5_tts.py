"""Public checkpoints in and out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.convert import f5_tts
from tests.models import golden


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("variant", (*golden.VARIANTS, *golden.OTHERS))
def test_round_trip_is_the_identity(variant, tmp_path):
    info = golden.config()["variants"][variant]
    model, variables = golden.build(variant)
    assert count(model.abstract()["params"]) == info["n_params"]
    f5_tts.write(tmp_path / "out.safetensors", variables["params"], step=7, dim_head=info["kwargs"]["dim_head"])
    got, wanted = load_file(tmp_path / "out.safetensors"), load_file(golden.GOLDEN / info["weights"])
    assert set(got) == set(wanted) and got["step"] == 7
    for name in set(wanted) - {"step"}:
        assert got[name].dtype == wanted[name].dtype
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)
    again, report = f5_tts.read(tmp_path / "out.safetensors", model.abstract()["params"])
    jax.tree.map(np.testing.assert_array_equal, again, variables["params"])
    assert report.dropped == ("initted", "rotary_embed.inv_freq", "step")


def tensors():
    return load_file(golden.GOLDEN / "dit_noconv.safetensors")


def read(changed, tmp_path):
    save_file(changed, tmp_path / "x.safetensors")
    model, _ = golden.build("dit_noconv")
    return f5_tts.read(tmp_path / "x.safetensors", model.abstract()["params"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("ema_model.transformer.proj_out.bias"), r"missing proj_out\.bias"),
        (lambda t: t.update({"ema_model.transformer.extra": np.ones(1)}), "unexpected extra"),
        (
            lambda t: t.update({"ema_model.transformer.text_embed.text_embed.weight": np.ones((9, 20), np.float32)}),
            r"text_embed\.text_embed\.weight has shape \(9, 20\), expected \(41, 20\)",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_explained(change, message, tmp_path):
    changed = tensors()
    change(changed)
    with pytest.raises(ValueError, match=message) as error:
        read(changed, tmp_path)
    assert "x.safetensors" in str(error.value)


def test_old_buffers_are_dropped_and_other_prefixes_accepted(tmp_path):
    changed = {name.replace("ema_model.", ""): value for name, value in tensors().items()}
    changed["ema_model.mel_spec.mel_stft.mel_scale.fb"] = np.ones((3, 3), np.float32)
    params, report = read(changed, tmp_path)
    assert "ema_model.mel_spec.mel_stft.mel_scale.fb" in report.dropped
    wanted, _ = read(tensors(), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


def test_half_precision_files_become_float32(tmp_path):
    changed = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in tensors().items()}
    params, _ = read(changed, tmp_path)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


def test_not_a_checkpoint(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"x\.safetensors is not a safetensors file"):
        f5_tts.read(tmp_path / "x.safetensors", {"input": {"kernel": jnp.ones((1, 1))}})
    with pytest.raises(ValueError, match="width"):
        f5_tts.build_kwargs({"width": 3})
