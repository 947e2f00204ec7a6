# pyright: reportMissingImports=false
"""The other side of tests/benchmarks/samplers.py: diffusers' and k-diffusion's own loops, in their environment."""

import argparse
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks import sampler_cases as cases
from tests.benchmarks.f5_cases import measure, say

Run = Callable[[torch.Tensor], torch.Tensor]


def k_sampling() -> Any:
    """k_diffusion.sampling without the rest of its package, which wants CLIP, image metrics and torchvision."""
    spec = importlib.util.find_spec("k_diffusion")
    assert spec is not None and spec.origin is not None
    package, images = types.ModuleType("k_diffusion"), types.ModuleType("torchvision.transforms")
    package.__path__ = [str(Path(spec.origin).parent)]
    images.functional = None
    sys.modules |= {
        "k_diffusion": package,
        "torchvision": types.ModuleType("torchvision"),
        "torchvision.transforms": images,
    }
    return importlib.import_module("k_diffusion.sampling")


def trajectories(net: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], saved: Any, steps: int) -> dict[str, Run]:
    """Every method as its users write it; ``net`` takes x and time [b, 1]."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    discrete = {"num_train_timesteps": cases.TRAINED, "trained_betas": saved["betas"], "timestep_spacing": "trailing"}
    flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=cases.TRAINED)
    levels, sampling = torch.from_numpy(saved["sigmas"]), k_sampling()

    def diffusers(scheduler: Any, offset: int, **options: Any) -> Run:
        def run(x: torch.Tensor) -> torch.Tensor:
            scheduler.set_timesteps(**options)
            for t in scheduler.timesteps:
                answer = net(x, ((t + offset) / cases.TRAINED).expand(len(x), 1))
                x = scheduler.step(answer, t, x).prev_sample
            return x

        return run

    def k_diffusion(name: str) -> Run:
        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return net(x, sigma[:, None])

        return lambda x: getattr(sampling, name)(denoise, x * levels[0], levels, disable=True)

    return {
        "diffusers DPM++2M": diffusers(
            DPMSolverMultistepScheduler(**discrete, final_sigmas_type="zero"), 1, num_inference_steps=steps
        ),
        "diffusers DDIM": diffusers(DDIMScheduler(**discrete, clip_sample=False), 1, num_inference_steps=steps),
        "diffusers flow Euler": diffusers(flow, 0, sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1].tolist()),
        "k-diffusion DPM++2M": k_diffusion("sample_dpmpp_2m"),
        "k-diffusion Euler": k_diffusion("sample_euler"),
        "k-diffusion Heun": k_diffusion("sample_heun"),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--size")
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    saved = np.load(args.folder / f"{args.size}.npz")
    layers = [(torch.from_numpy(m), torch.from_numpy(b)) for m, b in cases.weights(args.size)]

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return cases.network(torch, lambda parts: torch.cat(parts, 1), layers, x, t)

    runs = trajectories(net, saved, cases.STEPS[args.size])
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "k-diffusion"))
    result: dict[str, Any] = {"name": names, "cases": {}, "calls": {}}
    outputs, neighbours = {}, cases.Neighbours()
    with torch.inference_mode():
        for batch in args.batches:
            x, t = torch.from_numpy(cases.start(args.size, batch)), torch.full((batch, 1), 0.5)
            net(x, t)
            result["calls"][str(batch)] = measure(lambda x=x, t=t: net(x, t), args.seconds / 2, least=3)["wall"]
            for method, run in runs.items():
                say(f"theirs: {args.size}, batch {batch}, {method}")
                outputs[f"{batch} {method}"] = run(x).numpy()
                timed = measure(lambda run=run, x=x: run(x), args.seconds)
                result["cases"][f"{batch} {method}"] = timed["wall"]
    result["neighbours"] = neighbours.cores()
    np.savez(args.folder / "theirs.npz", **outputs)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
