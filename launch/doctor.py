# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""Says whether this installation works, and names the cause when it does not.

    python -m launch.doctor [--workdir=DIR]

One line per check; exits 1 when one failed.  Warnings (an optional extra that is missing) do not fail.
"""

import importlib
import importlib.metadata
import math
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from absl import app, flags

WORKDIR = flags.DEFINE_string("workdir", None, "A folder that runs will be written to; checked for space and access.")

PACKAGES = ("configs", "models", "train", "sampling", "data", "launch")
REQUIRED = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array_record", "tensorflow-datasets",
    "importlib_resources", "numpy", "soundfile", "soxr", "safetensors", "einops", "ml_collections", "absl-py",
    "matplotlib",
)  # fmt: skip
EXTRAS = {"speech": "pocketsphinx", "tensorboard": "tensorboardX", "export": "flatbuffers", "pinyin": "pypinyin"}
SUPPORTED_JAX = ((0, 10, 2), (0, 12))


class Problem(Exception):
    """A failed check; the message says what is wrong and what to do."""


class Warn(Exception):
    """Worth knowing, not wrong."""


def check_python() -> str:
    """Python 3.11 or 3.12."""
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        raise Problem(f"Python {platform.python_version()} is not supported; use 3.11 or 3.12")
    return f"{platform.python_version()} at {sys.executable}"


def check_packages() -> str:
    """All six of our packages come from one folder: a `train.py` in the way would shadow ours."""
    roots: dict[Path, list[str]] = {}
    for name in PACKAGES:
        module = importlib.import_module(name)
        if not getattr(module, "__path__", None):
            raise Problem(f"`{name}` is {module.__file__}, not Murmuration's package; rename it or run from elsewhere")
        roots.setdefault(Path(next(iter(module.__path__))).resolve().parent, []).append(name)
    if len(roots) > 1:
        places = "; ".join(f"{', '.join(names)} from {root}" for root, names in roots.items())
        raise Problem(
            f"our packages come from different places ({places}); remove the stale install or the shadowing folder"
        )
    return f"all six from {next(iter(roots))}"


def check_dependencies() -> str:
    """Everything setup.py requires is installed, jax and jaxlib agree."""
    missing = []
    versions = {}
    for name in REQUIRED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise Problem(f"not installed: {', '.join(missing)}; run `pip install -e .` in the checkout")
    number = tuple(int(x) for x in versions["jax"].split(".")[:3] if x.isdigit())
    if not SUPPORTED_JAX[0] <= number < SUPPORTED_JAX[1]:
        raise Problem(
            f"jax {versions['jax']} is outside the supported range >=0.10.2,<0.12; run `pip install -e .` again"
        )
    if versions["jax"] != versions["jaxlib"]:
        raise Problem(
            f"jax {versions['jax']} and jaxlib {versions['jaxlib']} differ; `pip install jaxlib=={versions['jax']}`"
        )
    return ", ".join(f"{n} {versions[n]}" for n in ("jax", "flax", "optax", "orbax-checkpoint", "grain"))


def check_extras() -> str:
    """Optional packages."""
    missing = []
    for extra, name in EXTRAS.items():
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(extra)
    if missing:
        raise Warn(f"optional extras not installed: {', '.join(missing)}; `pip install -e '.[{','.join(missing)}]'`")
    return "all installed"


def check_devices() -> str:
    """A backend starts, and a matrix product comes out right."""
    import jax
    import jax.numpy as jnp

    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise Problem(
            f"no JAX backend starts: {error}. With a GPU or TPU, install the extra: `pip install -e '.[gpu]'`"
        ) from None
    start = time.perf_counter()
    value = float(jax.jit(lambda a: (a @ a).sum())(jnp.ones((64, 64))))
    if value != 64.0**3:
        raise Problem(
            f"a 64x64 matrix product on {devices[0]} gave {value}, expected {64.0**3}; the driver or jaxlib is broken"
        )
    seconds = time.perf_counter() - start
    return f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()}), first compile {seconds:.1f} s"


def check_corpus() -> str:
    """The shipped corpus is there and decodes (Opus needs a current libsndfile)."""
    import data.audio

    folder = Path(data.audio.__file__).parent / "corpus"
    clips = sorted((folder / "wavs").glob("*"))
    if not clips:
        raise Problem(
            f"the spoken corpus is missing from {folder}; restore it, or make one: python -m launch.make_corpus"
        )
    wave = data.audio.load_audio(clips[0], 24000)
    return f"{len(clips)} clips, first one {len(wave) / 24000:.1f} s"


def check_write() -> str:
    """The work folder takes files, and has room."""
    folder = Path(WORKDIR.value or ".").resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        raise Problem(f"cannot write in {folder}: {error.strerror or error}; choose another --workdir") from None
    free = shutil.disk_usage(folder).free / 2**30
    if free < 2:
        raise Warn(f"only {free:.1f} GiB free in {folder}; checkpoints of a 337 M model take about 5 GiB each")
    return f"{folder} takes files, {free:.0f} GiB free"


def check_train() -> str:
    """Three optimiser steps of a tiny speech model on the shipped corpus, saved and read again."""
    import json

    import jax

    from configs.f5_tts import get_config
    from launch.pipelines.speech import load
    from train.console import Console
    from train.run import train

    start = time.perf_counter()
    config = get_config("tiny")
    config.data.max_batch = 2 * jax.device_count()  # every device gets rows
    config.data.frames_per_batch = 320 * config.data.max_batch
    with tempfile.TemporaryDirectory() as folder:
        train(config.to_dict(), folder, console=Console(enabled=False))
        records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        losses = [record["loss"] for record in records if record["kind"] == "train"]
        load(folder)
    if len(losses) != 3 or not all(math.isfinite(loss) for loss in losses):
        raise Problem(f"three training steps gave the losses {losses}")
    return f"losses {', '.join(f'{loss:.3f}' for loss in losses)} in {time.perf_counter() - start:.0f} s"


CHECKS: dict[str, Callable[[], str]] = {
    "python": check_python,
    "packages": check_packages,
    "dependencies": check_dependencies,
    "extras": check_extras,
    "devices": check_devices,
    "corpus": check_corpus,
    "write access": check_write,
    "training": check_train,
}


def run(checks: dict[str, Callable[[], str]] = CHECKS) -> int:
    """Runs every check, prints a line for each, returns the number of failures."""
    failures = 0
    for name, check in checks.items():
        try:
            verdict, text = "ok", check()
        except Warn as warning:
            verdict, text = "note", str(warning)
        except Problem as problem:
            verdict, text, failures = "FAIL", str(problem), failures + 1
        except Exception as error:  # an unexpected failure is a finding too, not a crash of the doctor
            verdict, text, failures = "FAIL", f"{type(error).__name__}: {error}", failures + 1
        print(f"{verdict:5} {name:13} {text}", flush=True)
        if verdict == "FAIL" and name in ("python", "packages", "dependencies"):
            print("      (the other checks need this one)")
            break
    print("everything works" if not failures else f"{failures} check(s) failed")
    return failures


def main(argv: list[str]) -> None:
    del argv
    sys.exit(1 if run() else 0)


if __name__ == "__main__":
    app.run(main)
