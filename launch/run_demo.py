# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""Trains a small F5-TTS on this machine, then speaks with it: what `make demo` runs.

    python -m launch.run_demo --out=demo [--data=DIR] [--steps=N]

Writes <out>/out.wav (a word sequence absent from training), <out>/loss.png, <out>/speech.png (spectrograms of the
recording and of the generated speech), <out>/report.json and <out>/run, an ordinary run folder.  Stop it with Ctrl-C
and start it again: it goes on where it stopped.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags

from data.errors import UserError
from launch.flags import run

OUT = flags.DEFINE_string("out", "demo", "Folder for everything that is made.")
DATA = flags.DEFINE_string("data", "", "Your own folder of speech (metadata.csv + wavs/), not the shipped digits.")
STEPS = flags.DEFINE_integer("steps", None, "Fewer or more training steps than the recipe's.", lower_bound=2)
WORDS = flags.DEFINE_integer("words", 120, "Words that the recogniser judges.", lower_bound=1)
VARIANT = flags.DEFINE_string("variant", "demo", "Variant of configs/f5_tts.py.")


def main(argv: list[str]) -> int:
    """Trains, speaks, judges, draws; returns the exit code."""
    del argv
    from train.preempt import DIVERGED, Diverged
    from train.run import train

    begin, out = time.perf_counter(), Path(OUT.value)
    config = demo_config(VARIANT.value, DATA.value, STEPS.value)
    workdir = out / "run"
    set_aside(workdir, config)
    print(f"training {config['steps']} steps, seed {config['seed']}, into {workdir}", flush=True)
    try:
        stop = train(config, workdir)
    except Diverged as error:
        print(f"diverged: {error}", file=sys.stderr)
        return DIVERGED
    if stop:
        return stop.code
    trained = time.perf_counter()
    loss_curve(workdir / "metrics.jsonl", out / "loss.png")
    report = speak(workdir, out, WORDS.value)
    report |= {
        "steps": config["steps"],
        "seed": config["seed"],
        "minutes": (time.perf_counter() - begin) / 60,
        "training_minutes": (trained - begin) / 60,
        "core_minutes": time.process_time() / 60,
    }
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(
        f"{report['minutes']:.1f} minutes, {report['training_minutes']:.1f} of them training; "
        f"{report['core_minutes']:.1f} core-minutes; seed {report['seed']}"
    )
    print(f"{out / 'out.wav'} says {report['text']!r}; {report['verdict']}")
    return 0


def demo_config(variant: str, folder: str, steps: int | None) -> dict[str, Any]:
    """The variant's config; a user's folder holds sentences rather than digits, so its clips are longer and single."""
    from configs.f5_tts import get_config
    from train.assemble import plain

    config = get_config(variant)
    if folder:
        config.data.dir = folder
        config.data.on_bad = "skip"
        config.data.pairs = False
        config.data.max_seconds = 10.0
        config.data.buckets = 3
        config.data.eval_fraction = 0.05
        config.data.frames_per_batch = 2400
        config.task.span = (0.7, 1.0)
    if steps is not None:
        config.steps = steps
        config.optim.warmup_steps = min(config.optim.warmup_steps, steps // 2)
    return plain(config)


def set_aside(workdir: Path, config: dict[str, Any]) -> None:
    """An earlier demo with another recipe keeps its folder, under another name."""
    file = workdir / "config.json"
    if not file.exists() or json.loads(file.read_text()) == json.loads(json.dumps(config)):
        return
    number = next(n for n in range(1, 10_000) if not (workdir.parent / f"{workdir.name}.{n}").exists())
    aside = workdir.parent / f"{workdir.name}.{number}"
    workdir.rename(aside)
    print(f"{workdir} was trained by another recipe; it is now {aside}")


def speak(workdir: Path, out: Path, words: int) -> dict[str, Any]:
    """Says held-out sentences, keeps the first as out.wav with its picture, and asks the recogniser about all."""
    from data.audio import log_mel, save_wav
    from launch.evaluation import speech
    from launch.pipelines.speech import load
    from launch.recogniser import Recogniser, split_words
    from train.pictures import spectrograms
    from train.workdir import read_config

    voice = load(workdir)
    corpus = speech.corpus_of(read_config(workdir), voice)
    try:
        judge = Recogniser(word for utterance in corpus.utterances for word in split_words(utterance.text))
        cases = speech.held_out_cases(corpus, voice, judge, words)
    except UserError as error:
        return {"text": None, "verdict": f"nothing was judged: {error}"}
    print(f"speaking {len(cases)} sentences that were not in training", flush=True)
    result = speech.evaluate(voice, judge, cases)
    known = speech.references(voice, judge, cases)
    first = speech.speak(voice, cases[:1])[0]
    save_wav(out / "out.wav", first.wave, first.sample_rate)
    recorded = log_mel(cases[0].recording, voice.task.spec)
    spectrograms(out / "speech.png", {f"recorded: {cases[0].text}": recorded, "generated": first.mel}, voice.task.spec)
    heard = " ".join(judge.transcribe(first.wave, first.sample_rate))
    print(f"word error rate, judged by pocketsphinx with a grammar of {len(judge.words)} words, 95 % intervals:")
    print(f"  generated speech                     {result.wer}")
    for name, rate in known.items():
        print(f"  {name:<36} {rate}")
    print(f"  chance (shuffled references)         {result.chance}")
    return {
        "text": cases[0].text,
        "heard": heard,
        "verdict": f"pocketsphinx hears {heard!r}; word error rate of all {len(cases)} sentences {result.wer}",
        "generated": result.to_dict(),
        "references": {name: rate.to_dict() for name, rate in known.items()},
    }


def loss_curve(metrics: Path, path: Path) -> None:
    """Training and held-out loss against the step, from metrics.jsonl."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure, axis = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for kind, label in (("train", "training"), ("eval", "held out, at evenly spread times")):
        points = [(r["step"], r["loss"]) for r in records if r["kind"] == kind and "loss" in r]
        if points:
            axis.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 50 else "")
    axis.set(xlabel="step", ylabel="flow-matching loss", yscale="log")
    axis.legend()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    run(main)
