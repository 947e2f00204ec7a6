"""F5-TTS golden rows of inference: reference clips, what is asked of a model, and what is done with its answers.

The planner and the joining are those of ``launch.pipelines.speech`` with ``behaviour="release"``; the model and the
vocoder are the fakes that the folder's README describes.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.audio import MelSpec
from data.pinyin import pinyin_tokens
from data.reference_clip import prepare_clip
from data.text import Tokenizer
from launch.pipelines.speech_durations import ReleaseRule
from launch.pipelines.speech_joining import join
from launch.pipelines.speech_plan import Options, Plan, Planner, Request
from launch.pipelines.speech_text import release_ending
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report

RMS, MEL, WAVE = 1e-5, 1e-5, 1e-5
RELEASE = {"steps": 32, "cfg_strength": 2.0, "sway": -1.0}  # the pipeline's own defaults
OPTIONS = {"nfe_step": "steps", "cfg_strength": "cfg_strength", "sway_sampling_coef": "sway"}
KNOWN = {"speed", "fix_duration", "cross_fade_duration", *OPTIONS}


def check(folder: GoldenFolder, report: Report) -> None:
    """``ref_audio_preprocess`` and ``pipeline`` (a JSON file and an npz each)."""
    for name, _ in folder.names(r"ref_audio_preprocess\.json"):
        with report.guard(name):
            clips(folder.json(name), folder.arrays(name.replace(".json", ".npz")), report)
    for name, _ in folder.names(r"pipeline\.json"):
        cases, waves = folder.json(name), folder.arrays("pipeline_waves.npz")
        for case in cases:
            with report.guard(f"{name}:{case}"):
                pipeline(f"{name}:{case}", cases[case], waves, report)


def clips(cases: Mapping[str, Any], stored: Mapping[str, Any], report: Report) -> None:
    """``<case>_in`` -> ``<case>_out``, equal to the last sample."""
    _ = cases.get("signal")  # says in words how the inputs were made; they are stored
    for case, about in cases["cases"].items():
        name = f"ref_audio_preprocess.npz:{case}"
        with report.guard(name):
            got, rate = prepare_clip(stored[f"{case}_in"], about["sample_rate"], "release")
            report.equal(f"{name} rate and samples", [rate, len(got)], [about["out_sample_rate"], about["out_len"]])
            report.equal(f"{name}_out", [got], [stored[f"{case}_out"]])
            text = about["ref_text_out"]
            report.equal(f"{name} text", [release_ending(text), release_ending(text.rstrip(". "))], [text, text])


def pipeline(name: str, case: Mapping[str, Any], waves: Mapping[str, Any], report: Report) -> None:
    """One text said by the fakes."""
    unknown = set(case["kw"]) - KNOWN
    if unknown:
        raise NotImplementedError(f"argument {sorted(unknown)[0]!r}")
    options = Options(
        **(RELEASE | {ours: case["kw"][theirs] for theirs, ours in OPTIONS.items() if theirs in case["kw"]}),
        behaviour="release",
        prepare=False,
        cross_fade=case["kw"].get("cross_fade_duration", 0.15),
    )
    spec = MelSpec()
    request = Request(
        case["gen"], _recording(case), case["ref"], case["kw"].get("fix_duration"), case["kw"].get("speed", 1.0)
    )
    plan = Planner(Tokenizer("byte"), spec, ReleaseRule())(request, options)
    reference = plan.reference
    assert reference is not None
    calls, title = case["calls"], case["name"]
    report.equal(f"{name} max_chars", [plan.max_bytes], [case["max_chars"]])
    report.equal(f"{name} durations", [piece.asked for piece in plan.pieces], [call["duration"] for call in calls])
    asked = [options.steps, options.cfg_strength, options.sway]
    report.equal(f"{name} options", [asked] * len(calls), [[c["steps"], c["cfg"], c["sway"]] for c in calls])
    report.equal(f"{name} reference samples", [len(reference.wave)] * len(calls), [c["cond_len"] for c in calls])
    rms = np.sqrt(np.mean(np.square(reference.wave, dtype=np.float64)))
    report.close(f"{name} reference rms", "host", [rms] * len(calls), [c["cond_rms"] for c in calls], RMS)
    if case["gen"].isascii() or all(importlib.util.find_spec(module) for module in ("rjieba", "pypinyin")):
        got = [pinyin_tokens(piece.text) for piece in plan.pieces]
        report.equal(f"{name} text", got, [call["text"][0] for call in calls])
    else:
        report.unchecked.append(f"{name} text: needs rjieba and pypinyin")
    _answers(name, title, plan, case, waves, options, report)


def _answers(
    name: str,
    title: str,
    plan: Plan,
    case: Mapping[str, Any],
    stored: Mapping[str, Any],
    options: Options,
    report: Report,
) -> None:
    """What the fakes make of the plan, joined."""
    assert plan.reference is not None
    spec, gain = MelSpec(), plan.reference.gain
    mels = [_fake_mel(k, piece.asked, spec.n_mels)[piece.start :] for k, piece in enumerate(plan.pieces, 1)]
    wave = join([_fake_wave(mel, spec.hop) / gain for mel in mels], int(options.cross_fade * spec.sample_rate))
    spectrogram = np.concatenate(mels).T
    report.equal(f"{name} samples", [len(wave)], [case["final_wave_len"]])
    report.equal(f"{name} spectrogram shape", [list(spectrogram.shape)], [case["spectrogram_shape"]])
    for key in stored:
        if not key.startswith(f"{title}_"):
            continue
        part = key.removeprefix(f"{title}_")
        if part == "spec_last_col":
            report.close(f"{name} {part}", "host", spectrogram[:, -1], stored[key], MEL)
        elif part.startswith("wave_first"):
            report.close(f"{name} {part}", "host", wave[: int(part.removeprefix("wave_first"))], stored[key], WAVE)
        elif part.startswith("wave_every"):
            step = int(part.removeprefix("wave_every").removesuffix("th"))
            report.close(f"{name} {part}", "host", wave[::step], stored[key], WAVE)


def _recording(case: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """amp·sin(0.05 n); a second channel is half the first."""
    wave = (case["amp"] * np.sin(0.05 * np.arange(int(case["sr"] * case["sec"])))).astype(np.float32)
    if case.get("stereo") or case.get("channels", 1) == 2:
        return np.stack([wave, wave / 2], axis=1), case["sr"]
    return wave, case["sr"]


def _fake_mel(call: int, frames: int, bands: int) -> np.ndarray:
    frame, band = np.arange(frames, dtype=np.float32)[:, None], np.arange(bands, dtype=np.float32)
    return np.float32(0.01) * frame + np.float32(0.001) * band + np.float32(call)


def _fake_wave(mel: np.ndarray, hop: int) -> np.ndarray:
    time = np.arange((len(mel) - 1) * hop, dtype=np.float32)
    return np.float32(0.5) * np.sin(np.float32(0.01) * time * mel[0, 0])
