"""Public checkpoints in and out of run folders: what comes out went in, and what is wrong is said in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from configs import e2_tts, f5_tts
from data.errors import UserError
from launch.conversion import speech_export
from launch.conversion.speech import convert, resize
from launch.pipelines.speech import Options, load
from models.convert.f5_tts import PREFIX, ROTARY, official_shapes, rotary_buffer
from models.functional import functional
from tests.launch.speech import make_clip
from tests.models.torch_archive import Raw, write_torch
from train.components import bind

ROOT = Path(__file__).parents[2]
SYMBOLS = " abcdefgh."
TABLE = f"{PREFIX}text_embed.text_embed.weight"


def config(family=f5_tts, variant: str = "v1_small") -> ConfigDict:
    """A released variant, made small."""
    c = family.get_config(variant)
    c.model.dim, c.model.depth, c.model.heads, c.model.dim_head = 32, 2, 2, 16
    if family is f5_tts:
        c.model.text_dim, c.model.conv_layers = 16, 1
    c.precision.compute = "float32"
    return c


def weights(c: ConfigDict) -> dict[str, np.ndarray]:
    """A released file's tensors, random; every name of it."""
    model, r = bind(c.model.to_dict(), "model"), np.random.default_rng(0)
    abstract = functional(lambda rngs: model(mel_dim=100, text_num_embeds=len(SYMBOLS), rngs=rngs)).abstract()
    tensors = {
        PREFIX + name: 0.05 * r.standard_normal(shape, np.float32)
        for name, shape in official_shapes(abstract["params"]).items()
    }
    return tensors | {PREFIX + ROTARY: rotary_buffer(16), "initted": np.array(True), "step": np.array(17, np.int64)}


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A small "released" file, and its vocab.txt beside it."""
    folder = tmp_path_factory.mktemp("released")
    (folder / "vocab.txt").write_text("".join(f"{s}\n" for s in SYMBOLS))
    save_file(weights(config()), folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def converted(released, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "model"
    lines = convert(config(), str(released), str(out), mel="bigvgan")
    assert lines[1].startswith("dropped 3: initted; rotary_embed.inv_freq; step") and "missing 0" in lines
    assert "averaged (EMA) weights of update 17" in "\n".join(lines)
    return out


def test_a_converted_folder_speaks_with_everything_inside(converted, tmp_path):
    voice = load(converted)
    assert voice.task.spec.kind == "bigvgan" and "".join(voice.task.tokenizer.symbols) == SYMBOLS
    clip = make_clip(tmp_path / "ref.wav")
    wave = voice("dad", clip, "cafe bad.", Options(steps=2), duration=0.3)
    assert np.isfinite(wave).all() and np.abs(wave).max() > 0 and abs(len(wave) / 24_000 - 0.3) < 0.02
    about = json.loads((converted / "assets" / "conversion.json").read_text())
    assert len(about["used"]) + 3 == len(weights(config())) and about["step"] == 17


def test_public_export_is_the_file_that_came_in(released, converted, tmp_path):
    speech_export.export_public(speech_export.Exported(converted), tmp_path)
    wanted, got = load_file(released), load_file(tmp_path / "model_17.safetensors")
    assert list(got) == list(wanted)
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype
        np.testing.assert_array_equal(got[name], tensor, err_msg=name)
    assert (tmp_path / "vocab.txt").read_bytes() == released.with_name("vocab.txt").read_bytes()


def test_folders_without_history_and_plain_tensors(converted, tmp_path):
    source = speech_export.Exported(converted)
    speech_export.export_params(source, tmp_path / "alone")
    speech_export.export_safetensors(source, tmp_path)
    again, plain = speech_export.Exported(tmp_path / "alone"), load_file(tmp_path / "params.safetensors")
    assert again.config == source.config and set(plain) == set(source.flat)
    for path, leaf in source.flat.items():
        np.testing.assert_array_equal(again.flat[path], leaf)
        np.testing.assert_array_equal(plain[path], leaf)


@pytest.mark.parametrize(("params", "scale"), [("ema", 1.0), ("raw", 2.0)])
def test_training_checkpoints_give_the_average_unless_told(released, tmp_path, params, scale):
    average = {k: v for k, v in load_file(released).items() if v.dtype == np.float32 or k == "step"}
    raw = {k.replace("ema_model.", ""): 2 * v for k, v in average.items() if k.startswith("ema_model.")}
    raw["mel_spec.mel_stft.spectrogram.window"] = np.ones(4, np.float32)
    content = {
        "model_state_dict": raw,
        "ema_model_state_dict": average,
        "update": 9,
        "scheduler_state_dict": {"lr": 0.1},
    }
    file = write_torch(tmp_path / "model.pt", content)
    convert(config(), str(file), str(tmp_path / "out"), vocab=str(released.with_name("vocab.txt")), params=params)
    source = speech_export.Exported(tmp_path / "out")
    assert source.step == 9
    np.testing.assert_array_equal(source.flat["text/embed/table"], scale * average[TABLE])


def test_the_u_net_converts_too(released, tmp_path):
    c = config(e2_tts, "small")
    save_file(weights(c), tmp_path / "e2.safetensors")
    convert(c, str(tmp_path / "e2.safetensors"), str(tmp_path / "out"), vocab=str(released.with_name("vocab.txt")))
    speech_export.export_public(speech_export.Exported(tmp_path / "out"), tmp_path)
    wanted, got = weights(c), load_file(tmp_path / "model_17.safetensors")
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted) and len(got) == len(wanted)


def changed(released: Path, folder: Path, **tensors: np.ndarray | None) -> str:
    """The released file with some tensors replaced, or left out."""
    content = load_file(released) | {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({k: v for k, v in content.items() if v is not None}, folder / "changed.safetensors")
    return str(folder / "changed.safetensors")


BIAS = "ema_model__transformer__proj_out__bias"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({BIAS: None}, r"changed\.safetensors: .*missing proj_out\.bias"),
        ({BIAS: np.zeros(7, np.float32)}, r"proj_out\.bias has shape \(7,\), expected \(100,\)"),
        ({BIAS: np.full(100, np.nan, np.float32)}, r"NaN or infinity in proj_out\.bias"),
        ({"ema_model__transformer__extra": np.ones(1, np.float32)}, "unexpected extra"),
        ({"ema_model__transformer__text_embed__text_embed__weight": np.ones((9, 16), np.float32)},
         "knows 8 symbols and the vocabulary has 10"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_leaves_nothing_behind(released, tmp_path, tensors, message, capsys):
    file, vocab = changed(released, tmp_path, **tensors), str(released.with_name("vocab.txt"))
    with pytest.raises(UserError, match=message):
        convert(config(), file, str(tmp_path / "out"), vocab=vocab)
    assert [p.name for p in tmp_path.iterdir()] == ["changed.safetensors"]
    shown = capsys.readouterr().out
    assert "symbols" in message or "used " in shown


def test_unusable_files_are_named(released, converted, tmp_path):
    vocab = str(released.with_name("vocab.txt"))

    def error(file: Path, vocab: str = vocab, out: Path = tmp_path / "out", **options) -> str:
        with pytest.raises(UserError) as found:
            convert(config(), str(file), str(out), vocab=vocab, **options)
        return str(found.value)

    assert "no such file" in error(tmp_path / "nothing.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"hello")
    assert "is not a safetensors file" in error(tmp_path / "junk.safetensors")
    evil = write_torch(tmp_path / "evil.pt", {"model_state_dict": {"x": Raw(b"cos\nsystem\n(X\x02\x00\x00\x00lstR")}})
    assert "its pickle asks for os.system" in error(evil)
    words = write_torch(tmp_path / "words.pt", {"ema_model_state_dict": {"x": "hello"}})
    assert "x is a str and no tensor" in error(words)
    empty = write_torch(tmp_path / "empty.pt", {"ema_model_state_dict": {}, "update": 3})
    assert "no raw weights; try --params=ema" in error(empty, params="raw")
    alone = shutil.copy(released, tmp_path / "alone.safetensors")
    assert "--vocab=FILE" in error(alone, vocab="")
    assert "exists already" in error(released, out=converted)
    assert not (tmp_path / "out").exists()


def test_options_that_the_reference_has_not_stop_an_export(converted, tmp_path):
    source = speech_export.Exported(converted)
    source.config["task"]["normalise"] = True
    with pytest.raises(UserError, match=r"config\.task\.normalise is True"):
        speech_export.export_public(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_new_language_keeps_the_rows_of_the_symbols_it_shares():
    old, new = tuple(SYMBOLS), (" ", "é", "c", "a", ".")
    table = np.random.default_rng(0).standard_normal((len(old) + 1, 6)).astype(np.float32) + 3
    out, line = resize(table, old, new)
    assert line == "vocabulary resized: 4 symbols kept, 1 new, 6 given up"
    np.testing.assert_array_equal(out[[0, 1, 3, 4, 5]], table[[0, 1, 4, 2, 10]])
    assert np.abs(out[2] - table[1:].mean(0)).max() < 0.5 * table[1:].std() and out.dtype == np.float32


def test_resized_checkpoints_load(released, tmp_path):
    (tmp_path / "new.txt").write_text(" \na\né\n")
    lines = convert(config(), str(released), str(tmp_path / "out"), resize_vocab=str(tmp_path / "new.txt"))
    assert "vocabulary resized: 2 symbols kept, 1 new, 8 given up" in lines
    source, table = speech_export.Exported(tmp_path / "out"), load_file(released)[TABLE]
    np.testing.assert_array_equal(source.flat["text/embed/table"][:3], table[[0, 1, 2]])
    assert source.tokenizer.symbols == (" ", "a", "é")


def test_the_commands_end_by_code(released, tmp_path):
    def command(name: str, *arguments: str) -> subprocess.CompletedProcess:
        full = [sys.executable, "-m", f"launch.{name}", *arguments]
        return subprocess.run(full, cwd=ROOT, capture_output=True, text=True, timeout=300)

    small = ["--config.model.dim=32", "--config.model.depth=2", "--config.model.heads=2", "--config.model.dim_head=16",
             "--config.model.text_dim=16", "--config.model.conv_layers=1"]  # fmt: skip
    out = f"--out={tmp_path / 'out'}"
    done = command("run_convert", "--config=configs/f5_tts.py:v1_small", f"--checkpoint={released}", out, *small)
    assert done.returncode == 0 and "dropped 3" in done.stdout, done.stderr
    wrong = command("run_convert", "--config=configs/f5_tts.py:v1_small", f"--checkpoint={released}", out + "2")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1
    later = command("run_export", f"--workdir={tmp_path / 'out'}", "--format=stablehlo", out)
    assert later.returncode == 2 and "stablehlo is not there yet" in later.stderr
