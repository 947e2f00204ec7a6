"""A checkpoint of the size and names of F5TTS_v1_Base through the commands: converted, spoken with, exported.

    python -m tests.benchmarks.convert_full_size [--folder=DIR]

The released files cannot be shipped, so the 366 tensors are random; everything else is as with the real ones.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
SYMBOLS = 2545
CONFIG = "configs/f5_tts.py:v1_base"
SECONDS, BYTES = 60.0, 4e9  # targets: conversion's time, and its memory beyond the file's size


def make_release(folder: Path) -> Path:
    """``model_1250000.safetensors`` and ``vocab.txt`` with the release's names, shapes and types."""
    from configs.f5_tts import get_config
    from models.convert.f5_tts import PREFIX, ROTARY, official_shapes, rotary_buffer
    from models.functional import functional
    from train.components import bind

    model = bind(get_config("v1_base").model.to_dict(), "model")
    abstract = functional(lambda rngs: model(mel_dim=100, text_num_embeds=SYMBOLS, rngs=rngs)).abstract()["params"]
    rng = np.random.default_rng(0)
    tensors = {
        PREFIX + name: 0.02 * rng.standard_normal(shape, np.float32)
        for name, shape in official_shapes(abstract).items()
    }
    tensors |= {PREFIX + ROTARY: rotary_buffer(64), "initted": np.array(True), "step": np.array(1_250_000, np.int64)}
    print(f"{len(tensors)} tensors, {sum(t.size for t in tensors.values()):,} numbers")
    symbols = [" ", *"abcdefghijklmnopqrstuvwxyz.,"]
    symbols += [f"sym{i}" for i in range(SYMBOLS - len(symbols))]
    (folder / "vocab.txt").write_text("".join(f"{s}\n" for s in symbols))
    save_file(tensors, folder / "model_1250000.safetensors")
    return folder / "model_1250000.safetensors"


def command(name: str, *arguments: str) -> tuple[float, float, int]:
    """Runs a command of ours; seconds, CPU seconds, and the largest memory in bytes of any child so far."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    full = [sys.executable, "-m", f"launch.{name}", *arguments]
    subprocess.run(full, cwd=ROOT, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, after.ru_maxrss * 1024


def verdict(good: bool) -> str:
    return "reached" if good else "MISSED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=None, help="where to work; a temporary folder by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        file = make_release(folder)
        size = file.stat().st_size
        seconds, cpu, memory = command(
            "run_convert", f"--config={CONFIG}", f"--checkpoint={file}", f"--out={folder / 'run'}",
            "--config.precision.compute=float32",
        )  # fmt: skip
        beyond = memory - size
        print(f"conversion: {seconds:.1f} s (target {SECONDS:.0f}: {verdict(seconds < SECONDS)}), {cpu:.1f} CPU s, "
              f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; peak memory "
              f"{memory / 1e9:.2f} GB, {beyond / 1e9:.2f} GB beyond the file's {size / 1e9:.2f} "
              f"(target {BYTES / 1e9:.0f}: {verdict(beyond < BYTES)})", flush=True)  # fmt: skip
        speak(folder / "run")
        seconds, _, _ = command(
            "run_export", f"--workdir={folder / 'run'}", "--format=public", f"--out={folder / 'export'}"
        )
        wanted, got = load_file(file), load_file(folder / "export" / file.name)
        same = set(wanted) == set(got) and all(
            wanted[k].dtype == got[k].dtype and wanted[k].tobytes() == got[k].tobytes() for k in wanted
        )
        print(f"export: {seconds:.1f} s; {len(got)} tensors, bit-identical: {same}")


def speak(folder: Path) -> None:
    """A very short utterance on the CPU."""
    from launch.pipelines.speech import Options, load

    start = time.perf_counter()
    voice = load(folder)
    loaded = time.perf_counter() - start
    clip = 0.1 * np.random.default_rng(0).standard_normal(voice.sample_rate // 2).astype(np.float32)
    start = time.perf_counter()
    wave = voice("hi.", clip, "good day.", Options(steps=2), duration=0.3)
    print(f"loaded in {loaded:.1f} s; {len(wave) / voice.sample_rate:.2f} s of speech, 2 steps, compilation included, "
          f"in {time.perf_counter() - start:.1f} s; finite: {np.isfinite(wave).all()}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
