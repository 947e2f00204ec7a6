"""Judges a trained model.

    python -m launch.run_eval --workdir=runs/demo [--table=steps,grid,cfg]

Speech: word error rate of held-out sentences by an independent recogniser, beside original recordings, vocoded ones
and chance, and the real-time factor; with --table, for every combination on those axes (steps 4, 8, 16, 32; sway and
uniform grid; guidance off, weak, strong).  Writes <out>/eval.json, <out>/eval.png and a few wavs.

Pairs (--pairs=LIST|FOLDER): texts said in given voices, or generated waves beside true ones: WER and CER, speaker
similarity, log-mel and multi-resolution STFT distance, RTF after a warm-up; see launch/evaluation/pairs.py.  Writes
<out>/pairs.json.

Vocoders (a folder of configs/vocos.py): beside Griffin-Lim on held-out recordings, error rate, spectral distances and
samples per CPU second.

Detectors: COCO's twelve numbers on the run's held-out set, or on any other COCO folder of its categories (--coco_json,
--images), and the latency of one image; with --table=steps at 1, 2, 4 and 8 steps, detections of all steps merged or
those of the last one alone.  Writes <out>/eval.json (per category too), <out>/detections.json and some pictures.

Images: accuracy by an independent classifier and Fréchet distance against network calls, with bootstrap intervals over
seeds (--noise_seeds), along --curves: solvers, guidance, correctors and searches by name, like euler, random:1-4-16 or
fkc:1-8; models in further folders beside it (--beside).  Writes <out>/curves.json, which a second run goes on with,
and <out>/curves.png; see launch/evaluation/curves.py.
"""

import dataclasses
import json
from pathlib import Path

from absl import flags

from data.errors import UserError
from launch.flags import run
from launch.plugins import plugin

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder or converted checkpoint; not needed for waves in --pairs.")
PAIRS = flags.DEFINE_string("pairs", None, "List or folder of pairs to judge.")
RECOGNISER = flags.DEFINE_string("recogniser", None, "For --pairs: module:function (wave, sample rate) -> text.")
EMBEDDING = flags.DEFINE_string("embedding", None, "For --pairs: module:function (wave, sample rate) -> vector.")
VOCODER = flags.DEFINE_string("vocoder", None, "For --pairs: folder of a vocoder; Griffin-Lim by default.")
BEHAVIOUR = flags.DEFINE_string("behaviour", "corrected", "For --pairs: corrected or release.")
DATA = flags.DEFINE_string("data", None, "Corpus to take held-out sentences from, instead of the run's own.")
TABLE = flags.DEFINE_list("table", [], "Axes to vary: steps, grid, cfg.")
WORDS = flags.DEFINE_integer("words", 150, "Judge at least this many words, if there are that many.")
STEPS = flags.DEFINE_integer(
    "steps", None, "Steps of the solver, where the table does not vary them; by default 16, of detectors 1."
)
CFG_STRENGTH = flags.DEFINE_float("cfg_strength", 2.0, "Guidance, where the table does not vary it.")
SWAY = flags.DEFINE_float("sway", -1.0, "Sway coefficient, where the table does not vary the grid.")
PARAMS = flags.DEFINE_string("params", "ema", "Which parameters: ema, raw or ema/<decay>.")
OUT = flags.DEFINE_string("out", None, "Folder for the results; <workdir>/eval by default.")
WAVS = flags.DEFINE_integer("wavs", 4, "How many of the judged utterances to keep as wav.")
COCO_JSON = flags.DEFINE_string("coco_json", "", "For detectors: a COCO-format json to judge by.")
IMAGES = flags.DEFINE_string("images", "", "For detectors: folder of the images of --coco_json; by default its own.")
PROPOSALS = flags.DEFINE_integer("proposals", 300, "For detectors: boxes denoised in each image.", lower_bound=1)
NOISE_SEEDS = flags.DEFINE_integer(
    "noise_seeds", None, "Numbers are means over so many; by default 1, of images 5.", lower_bound=1
)
PICTURES = flags.DEFINE_integer("pictures", 4, "For detectors: how many images to draw.")
CURVES = flags.DEFINE_list("curves", [], "For images: curves by name, each with its numbers if it likes: euler:2-4-8.")
BESIDE = flags.DEFINE_list("beside", [], "For images: more run folders, for the same picture.")
GUIDANCE = flags.DEFINE_float("guidance", 2.0, "For images: guidance weight of the curves sde and fkc; 1 is none.")
JUDGE = flags.DEFINE_string("judge", None, "For images: module:function (images, labels) -> {name: figure}.")
VERIFIER = flags.DEFINE_string("verifier", None, "For images: module:function (images, labels) -> scores, in JAX.")

VOCODER_TASK = "train.tasks.vocoder:VocoderTask"


def main(argv: list[str]) -> None:
    """Evaluates, prints a line per setting, writes the report."""
    del argv
    from data import detection_spec, images
    from data.audio import save_wav
    from launch.evaluation import speech
    from launch.evaluation.pairs import hardware
    from launch.pipelines.speech import load
    from launch.recogniser import Recogniser, split_words
    from train.compile import enable_compile_cache
    from train.workdir import ASSETS, read_config

    if PAIRS.value:
        return judge_pairs()
    if not WORKDIR.value:
        raise UserError("give --workdir, the run to judge")
    enable_compile_cache()
    if (Path(WORKDIR.value) / ASSETS / detection_spec.ASSET).is_file():
        return judge_detector(WORKDIR.value)
    if (Path(WORKDIR.value) / ASSETS / images.ASSET).is_file():
        return judge_images(WORKDIR.value)
    cells = speech.settings(TABLE.value)
    if read_config(WORKDIR.value).get("task", {}).get("type") == VOCODER_TASK:
        from launch.evaluation import vocoders

        place = Path(OUT.value or Path(WORKDIR.value) / "eval")
        return vocoders.run(WORKDIR.value, DATA.value, WORDS.value, place, WAVS.value)
    voice = load(WORKDIR.value, params=PARAMS.value)
    corpus = speech.corpus_of(read_config(WORKDIR.value), voice, DATA.value)
    judge = Recogniser(word for utterance in corpus.utterances for word in split_words(utterance.text))
    if judge.unknown:
        print(f"the recogniser does not know {len(judge.unknown)} words, among them {', '.join(judge.unknown[:5])}")
    cases = speech.held_out_cases(corpus, voice, judge, WORDS.value)
    known = speech.references(voice, judge, cases)
    for name, rate in known.items():
        print(f"{name:<36} WER {rate}", flush=True)

    defaults = {"steps": speech_steps(), "cfg_strength": CFG_STRENGTH.value, "sway": SWAY.value}
    rows = []
    for names, options in cells:
        result = speech.evaluate(voice, judge, cases, dataclasses.replace(speech.PLAIN, **(defaults | options)))
        rows.append({"names": names, "result": result})
        title = ", ".join(f"{axis} {name}" for axis, name in names.items()) or "generated"
        print(
            f"{title:<36} WER {result.wer}  chance {result.chance.rate:.2f}  RTF {result.rtf:.3f} "
            f"({result.rtf_sampling:.3f} sampling)",
            flush=True,
        )

    out = Path(OUT.value or Path(WORKDIR.value) / "eval")
    try:
        out.mkdir(parents=True, exist_ok=True)
        best = min(rows, key=lambda row: row["result"].wer.rate)["result"]
        for i, spoken in enumerate(speech.speak(voice, cases[: WAVS.value], best.options)):
            save_wav(out / f"{i}.wav", spoken.wave, spoken.sample_rate)
        speech.draw(out / "eval.png", rows, known)
        report = {
            "texts": [case.text for case in cases],
            "references": {name: rate.to_dict() for name, rate in known.items()},
            "results": [row["names"] | row["result"].to_dict() for row in rows],
        }
        (out / "eval.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror or error}") from error
    sampler = voice.sampler
    print(f"{hardware()}; {len(sampler.programs)} programs compiled in {sampler.compile_seconds:.1f} s, not in the RTF")
    print(f"{len(cases)} utterances judged; {out}/eval.json, eval.png and {min(WAVS.value, len(cases))} wavs")


def judge_pairs() -> None:
    """--pairs: prints and writes what ``launch.evaluation.pairs`` finds."""
    from launch.evaluation import pairs
    from launch.pipelines.speech import Options, load
    from train.compile import enable_compile_cache

    if TABLE.value:
        raise UserError("--table and --pairs do not go together")
    where = str(PAIRS.value)
    options = Options(steps=speech_steps(), cfg_strength=CFG_STRENGTH.value, sway=SWAY.value, behaviour=BEHAVIOUR.value)
    transcribe = plugin(RECOGNISER.value, "recogniser") if RECOGNISER.value else None
    embed = plugin(EMBEDDING.value, "embedding") if EMBEDDING.value else pairs.mel_statistics
    enable_compile_cache()
    voice = load(WORKDIR.value, params=PARAMS.value, vocoder=VOCODER.value) if WORKDIR.value else None
    out = Path(OUT.value or (Path(WORKDIR.value) / "eval" if WORKDIR.value else "eval"))
    try:
        pairs.run(where, voice, options, out, transcribe, embed, WAVS.value)
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror or error}") from error
    print(f"{out}/pairs.json")


def judge_detector(workdir: str) -> None:
    """Prints and writes what ``launch.evaluation.detection`` finds."""
    from launch.evaluation import detection
    from launch.evaluation.pairs import hardware
    from launch.pipelines.detect import load
    from train.workdir import read_config

    settings = detection.cells(TABLE.value, 1 if STEPS.value is None else STEPS.value, PROPOSALS.value)
    detector = load(workdir, params=PARAMS.value)
    truth = detection.held_out(read_config(workdir), COCO_JSON.value, IMAGES.value)
    out = Path(OUT.value or Path(workdir) / "eval")
    try:
        detection.run(detector, truth, settings, NOISE_SEEDS.value or 1, out, PICTURES.value)
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror or error}") from error
    print(hardware())


def judge_images(workdir: str) -> None:
    """Prints and writes what ``launch.evaluation.curves`` finds."""
    from launch.evaluation import curves
    from launch.evaluation.pairs import hardware

    out = Path(OUT.value or Path(workdir) / "eval")
    try:
        curves.run(
            [workdir, *BESIDE.value],
            CURVES.value,
            out,
            steps=16 if STEPS.value is None else STEPS.value,
            weight=GUIDANCE.value,
            seeds=NOISE_SEEDS.value or 5,
            params=PARAMS.value,
            judge=JUDGE.value,
            verifier=VERIFIER.value,
        )
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror or error}") from error
    print(hardware())


def speech_steps() -> int:
    return 16 if STEPS.value is None else STEPS.value


if __name__ == "__main__":
    run(main)
