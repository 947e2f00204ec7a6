"""Fine-tuning a converted checkpoint: its network, symbols and mel are kept, and the average begins where it stood."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import f5_tts
from data.audio import load_mel, save_wav
from data.errors import UserError
from launch.conversion.speech_export import Exported, export_params
from launch.pipelines.speech import load
from tests.launch.speech import make_workdir
from tests.train.speech import SPEC
from tests.train.test_checkpoint import arrays_of
from tests.train.toy_config import get_config
from train import trees, writers
from train.checkpoint import restore_variables
from train.console import Console
from train.run import train
from train.workdir import read_config


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A checkpoint as run_convert leaves it, of a language with more symbols than the new data has."""
    return make_workdir(tmp_path_factory.mktemp("converted") / "base")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Twelve chirps with names."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "wavs").mkdir()
    lines = []
    for i in range(12):
        t = np.arange(2400 + 64 * i) / SPEC.sample_rate
        save_wav(folder / "wavs" / f"c{i}.wav", 0.3 * np.sin(2000 * t * (1 + t)), SPEC.sample_rate)
        lines.append(f"c{i}|{'ab cd'[: 2 + i % 4].strip()}{'ab'[i % 2]}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder


def config(variant: str, clips: Path, **changes: Any) -> Any:
    """A variant, made small; as the command line would."""
    c: Any = f5_tts.get_config(variant)
    small = {"steps": 3, "data.dir": str(clips), "data.frames_per_batch": 512, "data.max_batch": 8, "data.buckets": 1,
             "data.eval_fraction": 0.3, "optim.warmup_steps": 1, "precision.compute": "float32", "evaluation.every": 2,
             "sample.every": 0, "compile_cache": False}  # fmt: skip
    c.update_from_flattened_dict(small | changes)
    return c


def quietly(*args: Any, **options: Any) -> None:
    assert train(*args, **options, console=Console(io.StringIO())) is None


@pytest.fixture(scope="module")
def adapted(base, clips, tmp_path_factory):
    """A LoRA run that also learns durations, which its base has not."""
    folder = tmp_path_factory.mktemp("adapted")
    lora = {"lora.rank": 2, "lora.train": "duration/.*", "task.duration_weight": 0.1}
    quietly(config("lora", clips, **lora), folder, init_from=base)
    return folder


def test_everything_that_numbers_mean_is_kept(base, adapted):
    assert (adapted / "assets" / "tokenizer.json").read_bytes() == (base / "assets" / "tokenizer.json").read_bytes()
    assert load_mel(adapted / "assets") == load_mel(base / "assets")
    ours, theirs = read_config(adapted), read_config(base)
    assert theirs["model"].items() <= ours["model"].items()
    assert ours["task"] == theirs["task"] | {"duration_weight": 0.1}


def test_the_run_speaks_with_its_update_and_goes_on_without_its_base(base, clips, adapted):
    task = load(adapted, durations="learned").task
    variables, _ = restore_variables(adapted, task.abstract())
    ours, theirs = (trees.flatten(restore_variables(folder, params="raw")[0]["params"]) for folder in (adapted, base))
    changed = {path for path, array in theirs.items() if (ours[path] != array).any()}
    assert changed and all(path.startswith("blocks/") and path.endswith("/kernel") for path in changed)
    assert {path.split("/")[0] for path in ours.keys() - theirs.keys()} == {"duration"}
    network, _ = restore_variables(adapted, task.network.abstract(), optional=task.optional)  # as an export has it
    assert trees.flatten(network["params"]).keys() == theirs.keys()
    predict, symbols = task.duration_predictor(variables), task.tokenizer.encode("ab cd")
    assert predict(40, symbols, symbols, ("", "")) == pytest.approx(2 * predict(20, symbols, symbols, ("", "")))
    lora = {"lora.rank": 2, "lora.train": "duration/.*", "task.duration_weight": 0.1}
    quietly(config("lora", clips, **lora), adapted)  # done already: nothing but the way there


def test_what_is_exported_is_the_base_with_its_update_merged(base, adapted, tmp_path):
    export_params(Exported(adapted, "raw"), tmp_path / "out")
    merged = trees.flatten(restore_variables(tmp_path / "out", params="raw")[0]["params"])
    kept = trees.flatten(restore_variables(base, params="raw")[0]["params"])
    own, moved = arrays_of(adapted, 3), 0
    for path, array in kept.items():
        factors = [own.get(f"params/lora/{path}/{side}") for side in "ab"]
        if factors[0] is None:
            np.testing.assert_array_equal(merged[path], array)
            continue
        update = 16 / 2 * np.matmul(*(np.asarray(f, np.float64) for f in factors))
        np.testing.assert_allclose(merged[path], array + update, rtol=1e-6, atol=1e-7)
        moved += bool(np.abs(update).max() > 0)
    assert moved


@pytest.mark.slow
def test_validation_is_the_same_number_for_the_same_weights_and_begins_at_the_base(base, clips, tmp_path):
    quietly(config("finetune", clips, **{"optim.lr": 0.0}), tmp_path, init_from=base)
    records = [{k: v for k, v in r.items() if k.startswith("loss")} for r in writers.read(tmp_path, "eval")]
    steps = [r["step"] for r in writers.read(tmp_path, "eval")]
    assert steps == [0, 2, 3] and len(records[0]) == 6
    assert records[0] == records[1] == records[2]
    start, _ = restore_variables(base)
    for path, array in arrays_of(tmp_path, 3).items():
        if path.startswith("ema/"):
            node = start["params"]
            for part in path.split("/")[2:]:
                node = node[part]
            np.testing.assert_array_equal(array, node)


def test_another_language_or_signal_is_refused_by_name(base, clips, tmp_path):
    changes: dict[str, Any] = {"data.tokenizer": "char"}
    wrong = config("finetune", clips, **changes)
    with wrong.unlocked():
        wrong.data.mel = SPEC.to_dict()
    with pytest.raises(UserError, match=r"vocabulary of 9 symbols and this run one of \d.*tokenizer=kept"):
        quietly(wrong, tmp_path / "a", init_from=base)
    with wrong.unlocked():
        wrong.data.mel.hop = 80
        wrong.data.tokenizer, wrong.data.vocab = "char", str(base / "assets" / "tokenizer.json")
    with pytest.raises(UserError, match=r"mel\.hop=64.*config\.data\.mel\.hop=80"):
        quietly(wrong, tmp_path / "b", init_from=base)
    with wrong.unlocked():
        wrong.data.tokenizer = "kept"
    with pytest.raises(UserError, match=r"config\.data\.mel\.hop is 80, but .* was trained with 64"):
        quietly(wrong, tmp_path / "c", init_from=base)
    with pytest.raises(UserError, match=r"config\.(model|task)\.type is 'kept'.*--init_from"):
        quietly(config("finetune", clips), tmp_path / "d")


def test_an_early_average_lies_between_the_start_and_the_weights_of_the_day(tmp_path):
    """After few steps it has left the base and not gone all the way; with a plain 0.999 it would not have moved."""
    toy: Any = get_config()
    toy.update_from_flattened_dict(
        {"steps": 12, "ema.decays": (0.999,), "optim.warmup_steps": 0, "optim.schedule": "constant", "optim.lr": 1e-3}
    )
    quietly(toy, tmp_path / "base")
    quietly(toy, tmp_path / "fine", init_from=tmp_path / "base")
    start, now = arrays_of(tmp_path / "base", 12), arrays_of(tmp_path / "fine", 12)
    paths = [p.removeprefix("params/") for p in now if p.startswith("params/")]
    path = np.concatenate([(now[f"params/{p}"] - start[f"ema/0.999/{p}"]).ravel() for p in paths])
    average = np.concatenate([(now[f"ema/0.999/{p}"] - start[f"ema/0.999/{p}"]).ravel() for p in paths])
    way = average @ path / (path @ path)
    assert 0.4 < way < 0.95
    assert np.linalg.norm(average - way * path) < 0.2 * np.linalg.norm(path)


def test_a_section_is_kept_from_a_config_that_has_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(UserError, match="has no section 'task'"):
        quietly(f5_tts.get_config("finetune"), tmp_path / "run", init_from=tmp_path)
