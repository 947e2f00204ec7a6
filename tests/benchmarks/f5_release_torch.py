# pyright: reportMissingImports=false
"""The PyTorch side of ``f5_release``: runs in the release's own environment, or on ``torch_dit`` where there is none.

Of the package only what inference needs is imported: ``f5_tts.model`` itself would pull in the trainer and everything
that training needs.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks import f5_cases as cases


def release_modules() -> tuple[Any, Any]:
    """The release's ``DiT`` and ``CFM``."""
    spec = importlib.util.find_spec("f5_tts")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("f5_tts is not installed")
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError):  # it makes the mel, which is given here; its binaries lag behind torch's
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    package = types.ModuleType("f5_tts.model")
    package.__path__ = [str(Path(spec.submodule_search_locations[0]) / "model")]
    sys.modules["f5_tts.model"] = package
    return importlib.import_module("f5_tts.model.backbones.dit").DiT, importlib.import_module("f5_tts.model.cfm").CFM


class Release:
    """``CFM.sample`` of the PyPI package, v1 options."""

    modes = ("together", "one by one")

    def __init__(self, size: str, weights: dict[str, torch.Tensor]):
        dit, cfm = release_modules()
        self.name = f"f5-tts {importlib.metadata.version('f5-tts')}, torch {torch.__version__}"
        self.network = dit(**cases.arguments(size), text_mask_padding=True, pe_attn_head=None)
        self.network.load_state_dict(weights, strict=True)
        self.model = cfm(self.network, mel_spec_kwargs={"mel_spec_type": "vocos"}).eval()

    def sample(self, rows: list[dict[str, np.ndarray]], steps: int) -> list[np.ndarray]:
        """One call of ``sample`` for all rows: [frames, mels] each."""
        batch = cases.padded(rows)
        lengths, known = (torch.from_numpy(batch[name]).long() for name in ("frames", "known"))
        out, _ = self.model.sample(
            torch.from_numpy(batch["clip"]), torch.from_numpy(batch["text"]).long(), lengths, lens=known, steps=steps,
            cfg_strength=cases.GUIDANCE, sway_sampling_coef=cases.SWAY, seed=cases.SEED,
        )  # fmt: skip
        return [row[: int(n)].numpy() for row, n in zip(out, batch["frames"], strict=True)]

    def encode(self, text: torch.Tensor, frames: int) -> None:
        """Text of the conditional and of the unconditional branch."""
        self.network.text_embed(text, seq_len=frames, drop_text=False)
        self.network.text_embed(text, seq_len=frames, drop_text=True)

    def call(self, x: torch.Tensor, text: torch.Tensor) -> None:
        """One guided network call; the text encoding is cached after the first."""
        self.network(x=x, cond=x, text=text, time=torch.tensor(0.3), cfg_infer=True, cache=True)

    def forget(self) -> None:
        """Empties the text cache."""
        self.network.clear_cache()


class Yardstick:
    """Our own PyTorch modules, one row at a time."""

    modes = ("one by one",)

    def __init__(self, size: str, weights: dict[str, torch.Tensor]):
        from tests.benchmarks.torch_dit import TorchDiT

        self.name = f"own modules in torch {torch.__version__} (the release cannot be imported)"
        self.network = TorchDiT(**cases.arguments(size)).eval()
        self.network.load_state_dict({k: v for k, v in weights.items() if "rotary" not in k}, strict=True)
        self._text: Any = None

    def sample(self, rows: list[dict[str, np.ndarray]], steps: int) -> list[np.ndarray]:
        """Rows one after the other, text encoded once each."""
        from sampling.grids import flow_grid

        times, out = torch.tensor(flow_grid(steps, sway_coefficient=cases.SWAY), dtype=torch.float32), []
        for row in rows:
            cond = torch.zeros(1, int(row["frames"]), cases.MEL)
            cond[0, : len(row["clip"])] = torch.from_numpy(row["clip"])
            text = torch.from_numpy(row["text"])[None].long()
            made = self.network.sample(noise(int(row["frames"]))[None], cond, text, times, cases.GUIDANCE)
            made[:, : len(row["clip"])] = cond[:, : len(row["clip"])]
            out.append(made[0].numpy())
        return out

    def encode(self, text: torch.Tensor, frames: int) -> None:
        """Text of both branches."""
        both = [self.network.encode_text(text, frames, drop) for drop in (False, True)]
        self._text = torch.cat(both)

    def call(self, x: torch.Tensor, text: torch.Tensor) -> None:
        """One guided network call."""
        if self._text is None:
            self.encode(text, x.shape[1])
        self.network.velocity(torch.cat([x, x]), torch.cat([x, x]), self._text, torch.full((2,), 0.3))

    def forget(self) -> None:
        """Forgets the text."""
        self._text = None


def noise(frames: int) -> torch.Tensor:
    """What ``CFM.sample`` starts a row from."""
    torch.manual_seed(cases.SEED)
    return torch.randn(frames, cases.MEL)


@torch.no_grad()
def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that one process measures; outputs and noise are left in the folder."""
    from safetensors.torch import load_file

    torch.set_num_threads(args.threads)
    prefix = "ema_model.transformer."
    loaded = load_file(args.folder / f"{args.size}.safetensors")
    weights = {k.removeprefix(prefix): v for k, v in loaded.items() if k.startswith(prefix)}
    try:
        model: Any = Release(args.size, weights)
    except ImportError as error:
        cases.say(f"the release cannot be imported ({error}): torch_dit in its place")
        model = Yardstick(args.size, weights)
    del loaded, weights
    result: dict[str, Any] = {"name": model.name, "loaded": cases.peak_memory(), "cases": {}, "factors": {}}
    outputs: dict[str, np.ndarray] = {}
    for batch in args.batches:
        rows = cases.requests(batch, args.frames)
        for row in rows:
            outputs[f"noise {row['frames']}"] = noise(int(row["frames"])).numpy()
        for steps in args.steps:
            for mode in model.modes if batch > 1 else ("together",):

                def sample(rows=rows, steps=steps, mode=mode) -> list[np.ndarray]:
                    if mode == "together":
                        return model.sample(rows, steps)
                    return [model.sample([row], steps)[0] for row in rows]

                name = f"{steps} {batch} {mode}"
                cases.say(f"{model.name}: {args.size}, {steps} steps, batch {batch}, {mode}")
                outputs[name] = np.concatenate(sample())
                result["cases"][name] = cases.measure(sample, args.seconds)
    x, text = torch.randn(1, args.frames, cases.MEL), torch.from_numpy(cases.requests(1, args.frames)[0]["text"])[None]
    for name, call in {
        "text": lambda: model.encode(text.long(), args.frames),
        "call": lambda: model.call(x, text.long()),
        "dispatch": lambda: model.call(x[:, : cases.DISPATCH_FRAMES], text.long()),
    }.items():
        model.forget()
        call()
        result["factors"][name] = cases.measure(call, args.seconds / 2, least=2)
    model.forget()
    result["peak"] = cases.peak_memory()
    np.savez(args.folder / "torch.npz", **outputs)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for option, kind in {"folder": Path, "size": str, "frames": int, "threads": int, "seconds": float}.items():
        parser.add_argument(f"--{option}", type=kind, required=True)
    parser.add_argument("--steps", type=int, nargs="+", required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    print(json.dumps(run(parser.parse_args())))
