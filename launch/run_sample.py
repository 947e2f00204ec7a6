"""Says a text in the voice of a reference clip, finds what is in images, or draws some.

    python -m launch.run_sample --workdir=runs/demo --text="four one seven" \\
        --ref_audio=ref.wav --ref_text="three nine two" --out=out.wav

The folder is a run's or a converted checkpoint's.  The wav appears complete or not at all.

    --text_file=FILE      a text of any length, said in chunks
    --stream              says when each chunk is ready; with --out=- its 16-bit samples go to stdout for a player
    --batch=FILE          JSON lines {"text", "ref_audio", "ref_text", "out"?, "duration"?, "speed"?, "seed"?}; --out is
                          the folder of the wavs, paths are relative to FILE
    --edit=0.8:1.3,2:2:0.5   new sound in these spans (start:end[:seconds]) of --ref_audio; --text is all of the result
    --no_reference        a voice that the model makes up
    --nbest=4             the best of four candidates per chunk, by how many words a recogniser hears

A detector's folder takes images, and writes boxes with classes and scores as JSON and, drawn into the image, as PNG:

    python -m launch.run_sample --workdir=runs/scenes --image=street.jpg --steps=4 --out=street.json

A folder of configs/digits_flow.py draws classes, a column for each, into one PNG:

    python -m launch.run_sample --workdir=runs/flow --labels=0,1,2,3 --each=5 --steps=8 --solver=heun --out=digits.png
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from data.errors import UserError
from launch.flags import run
from launch.plugins import plugin

if TYPE_CHECKING:
    from launch.pipelines.speech import Options, Request, SpeechPipeline, Spoken, Verifier

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder or converted checkpoint.", required=True)
TEXT = flags.DEFINE_string("text", None, "What to say.")
TEXT_FILE = flags.DEFINE_string("text_file", None, "File (UTF-8) with what to say.")
REF_AUDIO = flags.DEFINE_string("ref_audio", None, "Sound file with the voice: wav, flac, ogg, opus.")
REF_TEXT = flags.DEFINE_string("ref_text", None, "What is said in --ref_audio.")
NO_REFERENCE = flags.DEFINE_bool("no_reference", False, "Speak without a reference clip.")
BATCH = flags.DEFINE_string("batch", None, "JSON lines with many requests.")
EDIT = flags.DEFINE_string("edit", None, "Spans of --ref_audio to say anew, start:end[:seconds] in seconds.")
STREAM = flags.DEFINE_bool("stream", False, "Chunk by chunk, a short one first.")
OUT = flags.DEFINE_string("out", "out.wav", "The wav or json to write; a folder with --batch; - with --stream.")
PICTURE = flags.DEFINE_string("picture", None, "Also draw the spectrogram into this PNG; of detections, see --image.")
STEPS = flags.DEFINE_integer("steps", None, "Steps of the solver; by default 16, of detectors 1.")
CFG_STRENGTH = flags.DEFINE_float("cfg_strength", 2.0, "Guidance; 0 = none, at half the cost.")
SWAY = flags.DEFINE_float("sway", -1.0, "Sway sampling coefficient; 0 = none.")
PRUNED = flags.DEFINE_bool("pruned", True, "Use the EPSS time grids where there is one for --steps.")
METHOD = flags.DEFINE_string("method", "euler", "euler or midpoint.")
BEHAVIOUR = flags.DEFINE_string("behaviour", "corrected", "corrected, or release: as F5-TTS does it, defects included.")
PREPARE = flags.DEFINE_bool("prepare", True, "Cut long pauses and silent edges of the reference.")
CROSS_FADE = flags.DEFINE_float("cross_fade", 0.15, "Seconds that chunks overlap at most.")
FIRST_SECONDS = flags.DEFINE_float("first_seconds", 2.0, "Of a stream's first chunk, about.")
NBEST = flags.DEFINE_integer("nbest", 1, "Candidates per chunk.")
VERIFIER = flags.DEFINE_string("verifier", "words", "Who chooses: words, or module:function (sample rate -> verifier).")
DURATIONS = flags.DEFINE_string("durations", "rule", "rule, learned, fixed or fixed:<bytes per second>.")
SPEED = flags.DEFINE_float("speed", 1.0, "Above 1 is faster than the reference.")
DURATION = flags.DEFINE_float("duration", None, "Seconds of the new speech, instead of the reference's pace.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
PARAMS = flags.DEFINE_string("params", "ema", "Which parameters: ema, raw or ema/<decay>.")
VOCODER = flags.DEFINE_string("vocoder", None, "Folder of a converted or trained vocoder; Griffin-Lim by default.")
IMAGE = flags.DEFINE_list("image", [], "Images to find things in; drawn into --picture, by default beside --out.")
PROPOSALS = flags.DEFINE_integer("proposals", 300, "Boxes denoised in each image.", lower_bound=1)
MERGE = flags.DEFINE_bool("merge", True, "Detections of all steps, and not of the last one alone.")
LABELS = flags.DEFINE_list("labels", [], "Classes to draw, numbers from 0; the number after the last class is any.")
EACH = flags.DEFINE_integer("each", 4, "Images of each of --labels.", lower_bound=1)
SOLVER = flags.DEFINE_string("solver", "", "Of images: euler, heun, dpmpp2m, …; by default what the model is made for.")
GUIDANCE = flags.DEFINE_float("guidance", 1.0, "Of images: classifier-free guidance; 1 = none, at half the cost.")
PARTICLES = flags.DEFINE_integer(
    "particles", 1, "Of each image, weighed so that the guided law is kept.", lower_bound=1
)
MIN_SCORE = flags.DEFINE_float("min_score", 0.3, "Detections below it are left out.")

REQUEST_KEYS = {"text", "ref_audio", "ref_text", "out", "duration", "speed", "seed"}


def main(argv: list[str]) -> None:
    """Speaks, detects or draws."""
    del argv
    if IMAGE.value:
        return detect()
    if LABELS.value:
        return draw()
    mode = _mode()
    from launch.pipelines.speech import Options, load
    from train.compile import enable_compile_cache

    if not -(2**31) <= SEED.value < 2**32:
        raise UserError(f"--seed={SEED.value}: expected a 32-bit number")
    options = Options(
        steps=16 if STEPS.value is None else STEPS.value,
        cfg_strength=CFG_STRENGTH.value,
        sway=SWAY.value,
        pruned=PRUNED.value,
        method=METHOD.value,
        behaviour=BEHAVIOUR.value,
        prepare=PREPARE.value,
        cross_fade=CROSS_FADE.value,
        first_seconds=FIRST_SECONDS.value,
        nbest=NBEST.value,
    )
    enable_compile_cache()
    voice = load(WORKDIR.value, params=PARAMS.value, vocoder=VOCODER.value, durations=DURATIONS.value)
    try:
        mode(voice, options)
    except OSError as error:
        raise UserError(f"{error.filename or OUT.value} cannot be written: {error.strerror or error}") from error


def _mode() -> "Callable[[SpeechPipeline, Options], None]":
    """What is to be done; flags that do not go together are refused before anything is loaded."""
    chosen = [name for name, on in (("--batch", BATCH.value), ("--edit", EDIT.value), ("--stream", STREAM.value)) if on]
    if len(chosen) > 1:
        raise UserError(f"{chosen[0]} and {chosen[1]} do not go together")
    if BATCH.value:
        return batch
    if bool(TEXT.value) == bool(TEXT_FILE.value):
        raise UserError("give what to say by --text or by --text_file, one of the two")
    if NO_REFERENCE.value == bool(REF_AUDIO.value):
        raise UserError("give the voice by --ref_audio, or say --no_reference")
    if REF_AUDIO.value and not REF_TEXT.value and not EDIT.value:
        raise UserError("the reference clip needs its words; give --ref_text")
    if Path(OUT.value).suffix.lower() != ".wav" and not (STREAM.value and OUT.value == "-"):
        raise UserError(f"--out={OUT.value}: expected a name that ends in .wav")
    return edit if EDIT.value else stream if STREAM.value else single


def detect() -> None:
    """Boxes in every --image: one JSON, and a picture for each."""
    from data.pixels import encode_png
    from launch.pipelines.detect import Options, load, load_image, picture
    from train.compile import enable_compile_cache

    out = Path(OUT.value if OUT.present else "out.json")
    if out.suffix.lower() != ".json":
        raise UserError(f"--out={out}: expected a name that ends in .json")
    if PICTURE.value and len(IMAGE.value) > 1:
        raise UserError("--picture is for one --image; the pictures of several are written beside --out")
    options = Options(
        1 if STEPS.value is None else STEPS.value, PROPOSALS.value, MERGE.value, MIN_SCORE.value, SEED.value
    )
    images = [load_image(file) for file in IMAGE.value]
    enable_compile_cache()
    detector = load(WORKDIR.value, params=PARAMS.value)
    start = time.perf_counter()
    found = detector(images, options)
    taken = time.perf_counter() - start
    pictures = [out.with_name(f"{out.stem}.{i}.png") for i in range(len(images))]
    if len(images) == 1:
        pictures = [Path(PICTURE.value or out.with_suffix(".png"))]
    rows = []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for file, pixels, one, drawn in zip(IMAGE.value, images, found, pictures, strict=True):
            results = one.results(detector.spec.categories.ids)
            named = [{"name": name} | row for name, row in zip(one.names, results, strict=True)]
            rows.append({"image": file, "height": len(pixels), "width": len(pixels[0]), "detections": named})
            drawn.write_bytes(encode_png(picture(pixels, one)))
            best = ", ".join(f"{name} {score:.2f}" for name, score in list(zip(one.names, one.scores, strict=True))[:8])
            print(f"{file}: {len(one.names)} found{f': {best}' if best else ''}; {drawn}")
        out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror or error}") from error
    compiled = f"{len(detector.programs)} programs compiled in {detector.compile_seconds:.1f} s"
    print(f"{out}: {len(images)} images in {taken:.1f} s, {compiled}")


def draw() -> None:
    """Images of every one of --labels, as one PNG."""
    from launch.pipelines.images import Options, load
    from train.compile import enable_compile_cache
    from train.pictures import image_table

    out = Path(OUT.value if OUT.present else "out.png")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out={out}: expected a name that ends in .png")
    try:
        labels = [int(label) for label in LABELS.value]
    except ValueError:
        raise UserError(f"--labels={','.join(LABELS.value)}: expected numbers, such as 0,1,2") from None
    enable_compile_cache()
    pipeline = load(WORKDIR.value, params=PARAMS.value)
    steps = STEPS.value or (16 if pipeline.follows_slopes else 1)
    options = Options(steps=steps, solver=SOLVER.value, guidance=GUIDANCE.value, particles=PARTICLES.value)
    start = time.perf_counter()
    made = pipeline(labels * EACH.value, options, seed=SEED.value)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        image_table(out, made.images, columns=len(labels))
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror or error}") from error
    taken, calls = time.perf_counter() - start, int(made.ledger.network_calls)
    print(f"{out}: {len(made.images)} images in {taken:.1f} s with compilation, {calls} network calls each")


def single(voice: "SpeechPipeline", options: "Options") -> None:
    """One text, one wav."""
    request = _request()
    verifier = _verifier(voice, [request.text, request.ref_text], options)
    start = time.perf_counter()
    spoken = voice.batch([request], options, verifier)[0]
    _write(spoken, Path(OUT.value), time.perf_counter() - start, voice)


def edit(voice: "SpeechPipeline", options: "Options") -> None:
    """A recording with some spans said anew."""
    from launch.pipelines.speech_editing import parse_edits

    request = _request()
    assert isinstance(request.text, str) and request.ref_audio is not None
    verifier = _verifier(voice, [request.text, request.ref_text], options)
    start = time.perf_counter()
    edits = parse_edits(str(EDIT.value))
    seed = SEED.value % 2**32
    spoken = voice.edit(
        request.ref_audio, request.text, edits, options, ref_text=request.ref_text, seed=seed, verifier=verifier
    )
    _write(spoken, Path(OUT.value), time.perf_counter() - start, voice)


def stream(voice: "SpeechPipeline", options: "Options") -> None:
    """One text as it comes: a line per chunk, and its samples where --out=- asks for them."""
    from data.audio import save_wav

    request = _request()
    verifier = _verifier(voice, [request.text, request.ref_text], options)
    raw, parts, start = OUT.value == "-", [], time.perf_counter()
    for part in voice.stream(request, options, verifier):
        parts.append(part)
        heard = sum(map(len, parts)) / voice.sample_rate
        line = f"after {time.perf_counter() - start:.2f} s: {len(part) / voice.sample_rate:.2f} s, {heard:.2f} in all"
        print(line, file=sys.stderr if raw else sys.stdout, flush=True)
        if raw:
            sys.stdout.buffer.write((np.clip(part, -1.0, 1.0) * 32767.0).astype("<i2").tobytes())
            sys.stdout.buffer.flush()
    if not raw:
        save_wav(str(OUT.value), np.concatenate(parts), voice.sample_rate)
        print(f"{OUT.value}: {len(voice.sampler.programs)} programs compiled in {voice.sampler.compile_seconds:.1f} s")


def batch(voice: "SpeechPipeline", options: "Options") -> None:
    """Every line of a file."""
    from data.audio import save_wav

    requests, names = read_batch(Path(str(BATCH.value)))
    verifier = _verifier(voice, [t for r in requests for t in (r.text, r.ref_text)], options)
    folder, start = Path(OUT.value), time.perf_counter()
    spoken = voice.batch(requests, options, verifier)
    taken = time.perf_counter() - start
    for name, answer in zip(names, spoken, strict=True):
        save_wav(folder / name, answer.wave, answer.sample_rate)
    seconds = sum(len(answer.wave) for answer in spoken) / voice.sample_rate
    calls = sum(answer.ledger.network_calls for answer in spoken)
    print(
        f"{folder}: {len(spoken)} wavs, {seconds:.2f} s of speech in {taken:.1f} s, {calls} network calls, "
        f"{len(voice.sampler.programs)} programs compiled in {voice.sampler.compile_seconds:.1f} s"
    )


def read_batch(path: Path) -> "tuple[list[Request], list[str]]":
    """Requests of a JSON lines file and the names of their wavs.

    Raises:
      UserError: names the line and what is wrong with it.
    """
    from launch.pipelines.speech import Request

    if not path.is_file():
        raise UserError(f"--batch={path}: no such file")
    requests, names = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            fields: Any = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error})") from error
        if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
            raise UserError(f"{where}: expected an object with a text")
        unknown = sorted(set(fields) - REQUEST_KEYS)
        if unknown:
            raise UserError(f"{where}: {unknown[0]!r} is not known; choose from {', '.join(sorted(REQUEST_KEYS))}")
        name = str(fields.pop("out", f"{len(names):04d}.wav"))
        if Path(name).name != name or not name.endswith(".wav"):
            raise UserError(f"{where}: out is {name!r}; expected a file name that ends in .wav")
        if name in names:
            raise UserError(f"{where}: out is {name!r}, like that of an earlier line")
        audio = fields.get("ref_audio")
        fields["ref_audio"] = None if audio is None else str(path.parent / str(audio))
        fields["ref_text"] = str(fields.get("ref_text", ""))
        requests.append(Request(**fields))
        names.append(name)
    if not requests:
        raise UserError(f"{path}: holds no requests")
    return requests, names


def _request() -> "Request":
    from launch.pipelines.speech import Request

    text = TEXT.value or ""
    if TEXT_FILE.value:
        try:
            text = Path(TEXT_FILE.value).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--text_file={TEXT_FILE.value} cannot be read as UTF-8 text: {error}") from error
    ref_text = REF_TEXT.value or ""
    return Request(text, REF_AUDIO.value, ref_text, DURATION.value, SPEED.value, SEED.value % 2**32)


def _verifier(voice: "SpeechPipeline", texts: Sequence[Any], options: "Options") -> "Verifier | None":
    """The chooser among candidates, where there are any."""
    if options.nbest == 1:
        return None
    if VERIFIER.value == "words":
        from launch.recogniser import WordVerifier, split_words

        return WordVerifier((word for text in texts for word in split_words(str(text))), voice.sample_rate)
    return plugin(VERIFIER.value, "verifier")(voice.sample_rate)


def _write(spoken: "Spoken", out: Path, taken: float, voice: "SpeechPipeline") -> None:
    from data.audio import save_wav

    save_wav(out, spoken.wave, spoken.sample_rate)
    if PICTURE.value:
        from train.pictures import spectrograms

        spectrograms(PICTURE.value, {" ".join(spoken.chunks)[:100]: spoken.mel}, voice.task.spec)
    seconds, ledger = len(spoken.wave) / spoken.sample_rate, dataclasses.asdict(spoken.ledger)
    line = f"{out}: {seconds:.2f} s of speech in {taken:.1f} s, {ledger['network_calls']} network calls"
    if spoken.scores:
        line += f", {ledger['verifier_calls']} verifier calls, scores {', '.join(f'{s:g}' for s in spoken.scores)}"
    print(f"{line}, {len(spoken.chunks)} chunks" if len(spoken.chunks) > 1 else line)


if __name__ == "__main__":
    run(main)
