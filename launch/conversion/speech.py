"""A public checkpoint of F5-TTS or E2-TTS as a folder that every command of ours takes."""

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.audio import MelSpec, save_mel
from data.errors import UserError
from data.text import Tokenizer, make_tokenizer
from launch.conversion.folder import check_new, write_folder
from models.convert import f5_tts
from models.convert.torch_file import read_torch
from models.functional import functional
from train import trees
from train.assemble import plain
from train.components import bind

EMA, RAW = "ema_model_state_dict", "model_state_dict"  # of a training checkpoint
TABLE = "text_embed.text_embed.weight"
NOISE = 0.1  # of new rows of the table, relative to the deviation of the old ones


@dataclasses.dataclass(frozen=True)
class Source:
    """What was read: tensors by name, whether they are an average, the update they are of."""

    tensors: Mapping[str, np.ndarray]
    averaged: bool
    step: int


def convert(
    config: Mapping[str, Any],
    checkpoint: str,
    out: str,
    *,
    vocab: str = "",
    mel: str = "",
    params: str = "ema",
    resize_vocab: str = "",
) -> list[str]:
    """Reads ``checkpoint`` as the network of ``config`` and writes the folder ``out``.

    Args:
      config: of a released variant, such as ``configs/f5_tts.py:v1_base``.
      checkpoint: a ``.safetensors`` file, or a ``.pt`` that ``torch.save`` wrote.
      vocab: the ``vocab.txt`` of the checkpoint; "" = the one beside it.
      mel: "vocos" or "bigvgan", what it was trained with; "" = as the config says.
      params: "ema" (raw where the file has no average) or "raw".
      resize_vocab: a ``vocab.txt`` for which the table of symbols is remade; rows are kept by symbol.

    Returns:
      The report, line by line.

    Raises:
      UserError: anything that does not fit; nothing is written then.
    """
    target = check_new(out)
    values: dict[str, Any] = json.loads(json.dumps(plain(config)))
    if mel:
        values["data"]["mel"]["kind"] = mel
    spec = MelSpec(**values["data"]["mel"])
    tokenizer = find_tokenizer(values["data"]["tokenizer"], vocab, checkpoint)
    lines = []
    with open_source(checkpoint, params) as source:
        _check_vocabulary(source, tokenizer, checkpoint)
        abstract = _abstract(values, spec, tokenizer)
        tree, report = _fit(source, abstract, checkpoint)
        lines += describe(report)
        step, averaged = source.step, source.averaged
    lines.append(f"{'averaged (EMA)' if averaged else 'raw'} weights of update {step}; mel type {spec.kind}")
    if resize_vocab:
        new = make_tokenizer(_kind(values["data"]["tokenizer"]), resize_vocab)
        table, line = resize(tree["text"]["embed"]["table"], tokenizer.symbols, new.symbols)
        tree["text"]["embed"]["table"], tokenizer = table, new
        lines.append(line)
    values["data"]["tokenizer"], values["data"]["vocab"] = tokenizer.kind, ""
    about = {"checkpoint": Path(checkpoint).name, "step": step, "averaged": averaged, **dataclasses.asdict(report)}

    def write_assets(folder: Path) -> None:
        tokenizer.save(folder)
        save_mel(folder, spec)
        (folder / "conversion.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    write_folder(target, values, write_assets, {"params": tree, "stats": {}}, step)
    count = sum(leaf.size for leaf in trees.flatten(tree).values())
    lines.append(f"{out}: {count:,} parameters, {tokenizer.size} symbols, checkpoint {step}")
    return lines


def find_tokenizer(kind: str, vocab: str, checkpoint: str) -> Tokenizer:
    """The tokenizer of a checkpoint: bytes need no file, the rest that of ``vocab`` or the vocab.txt beside it."""
    kind = _kind(kind)
    beside = Path(checkpoint).with_name("vocab.txt")
    if kind != "byte" and not vocab:
        if not beside.is_file():
            raise UserError(f"the symbols of {checkpoint} are not known; give its vocab.txt with --vocab=FILE")
        vocab = str(beside)
    return make_tokenizer(kind, vocab)


def _kind(kind: str) -> str:
    return "vocab" if kind == "char" else kind  # characters, in the order of the file


@contextlib.contextmanager
def open_source(checkpoint: str, params: str = "ema") -> Iterator[Source]:
    """The tensors of a public file, by name.

    Raises:
      UserError: it cannot be read, or has no such parameters.
    """
    path = Path(checkpoint)
    if params not in ("ema", "raw"):
        raise UserError(f"--params={params}: expected ema or raw")
    if not path.is_file():
        raise UserError(f"--checkpoint={path}: no such file")
    with contextlib.ExitStack() as closing:
        try:
            if path.suffix == ".safetensors":
                content: Any = closing.enter_context(f5_tts.TensorFile(path))
            else:
                content = read_torch(path)
        except (ValueError, OSError) as error:
            raise UserError(f"{error}") from error
        yield select(content, params, checkpoint)


def select(content: Any, params: str, where: str) -> Source:
    """The average or the raw weights among everything that a file holds; prefers the average."""
    if not isinstance(content, Mapping):
        raise UserError(f"{where} holds a {type(content).__name__} and no table of tensors")
    parts = {"ema": content.get(EMA), "raw": content.get(RAW)}
    if not any(isinstance(part, Mapping) for part in parts.values()):
        averaged = any(name.startswith("ema_model.") for name in content)
        parts = {"ema": content if averaged else None, "raw": None if averaged else content}
    found = parts["ema"] if params == "ema" and parts["ema"] is not None else parts["raw"]
    if not isinstance(found, Mapping):
        raise UserError(f"{where} has no {params} weights; try --params={'raw' if params == 'ema' else 'ema'}")
    step: Any = content["update"] if "update" in content else content.get("step", found.get("step", 0))
    if not isinstance(found, f5_tts.TensorFile):
        strange = [name for name, value in found.items() if not isinstance(value, np.ndarray | int | float)]
        if strange:
            raise UserError(f"{where}: {strange[0]} is a {type(found[strange[0]]).__name__} and no tensor")
    return Source(found, found is parts["ema"], int(np.asarray(step)))


def _check_vocabulary(source: Source, tokenizer: Tokenizer, checkpoint: str) -> None:
    """Table and symbols of different sizes are the commonest mistake, so they are compared first."""
    name = next((name for name in source.tensors if name.endswith(TABLE)), None)
    rows = len(source.tensors[name]) if name else tokenizer.size + 1
    if rows != tokenizer.size + 1:
        raise UserError(
            f"{checkpoint} knows {rows - 1} symbols and the vocabulary has {tokenizer.size}; give with --vocab the "
            "vocab.txt that it was trained with (and with --resize_vocab that of a new language)"
        )


def _abstract(values: Mapping[str, Any], spec: MelSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    model = bind(values["model"], "model")
    sizes = {"mel_dim": spec.n_mels, "text_num_embeds": tokenizer.size}
    return functional(lambda rngs: model(**sizes, rngs=rngs)).abstract()["params"]


def _fit(source: Source, abstract: Mapping[str, Any], where: str) -> tuple[dict[str, Any], f5_tts.Report]:
    try:
        return f5_tts.from_official(source.tensors, abstract)
    except f5_tts.Misfit as error:
        print("\n".join(describe(error.report)))
        raise UserError(f"{where}: {error}") from error


def describe(report: f5_tts.Report) -> list[str]:
    """What happened to every tensor, a line per kind; the many that were used are counted by module."""
    groups = Counter(name.split(".")[0] for name in report.used)
    used = ", ".join(f"{count} of {name}" for name, count in groups.items())
    lines = [f"used {len(report.used)}: {used}"]
    for kind in ("dropped", "missing", "misshaped", "unexpected", "nonfinite"):
        names = getattr(report, kind)
        if names or kind in ("dropped", "missing", "misshaped"):
            lines.append(f"{kind} {len(names)}" + (": " + "; ".join(names) if names else ""))
    return lines


def resize(table: np.ndarray, old: tuple[str, ...], new: tuple[str, ...], seed: int = 0) -> tuple[np.ndarray, str]:
    """The table for other symbols: rows kept by symbol, new ones at the mean of the old with a little noise.

    Args:
      table: [1 + old symbols, dim]; row 0 is the filler and stays.

    Returns:
      [1 + new symbols, dim] float32, and a line about it.
    """
    known = {symbol: i + 1 for i, symbol in enumerate(old)}
    mean, deviation = table[1:].mean(0), table[1:].std(0)
    noise = np.random.default_rng(seed).standard_normal((len(new), table.shape[1]), np.float32)
    out = np.concatenate([table[:1], mean + NOISE * deviation * noise]).astype(np.float32)
    kept = [(i + 1, known[symbol]) for i, symbol in enumerate(new) if symbol in known]
    out[[i for i, _ in kept]] = table[[i for _, i in kept]]
    gone = len(old) - len(kept)
    return out, f"vocabulary resized: {len(kept)} symbols kept, {len(new) - len(kept)} new, {gone} given up"
