"""Cells of ``launch/compare_detectors.py``: one recipe trained with one seed and judged by steps, and their table."""

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError

FILE = "cell.json"
FAMILIES = {
    "diffusion": ("diffusion_det", ""),
    "released": ("consistency_det", "_released"),
    "consistency": ("consistency_det", ""),
}
NUMBERS = ("AP", "AP50")


def config_of(recipe: str, variant: str) -> dict[str, Any]:
    """A recipe's config as plain values."""
    from train.assemble import plain

    module, suffix = FAMILIES[recipe]
    config = importlib.import_module(f"configs.{module}").get_config(variant + suffix)
    return json.loads(json.dumps(plain(config)))


def budgets(configs: Mapping[str, Any], updates: int, out: Path) -> dict[str, int]:
    """Updates of each recipe that cost the same."""
    from train.assemble import structs
    from train.components import bind, build

    flops = {}
    for name, config in configs.items():
        data = build(config["data"], "data", seed=config["seed"])
        assets = out / "assets"
        assets.mkdir(parents=True, exist_ok=True)
        data.write_assets(str(assets))
        model, shapes = bind(config["model"], "model"), structs(data.shapes)
        task = build(config["task"], "task", model=model, assets=str(assets), shapes=shapes)
        flops[name] = task.flops(task.example())
    cheapest = min(flops, key=lambda name: flops[name])
    most = updates or configs[cheapest]["steps"]
    return {name: max(1, round(most * flops[cheapest] / cost)) for name, cost in flops.items()}


def cell(folder: Path, config: Mapping[str, Any], updates: int, seed: int) -> dict[str, Any]:
    """One training, judged; from its file if it is finished.

    Raises:
      UserError: the folder has a training of another length.
    """
    from train.run import train

    if (folder / FILE).is_file():
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if kept["updates"] != updates:
            raise UserError(f"{folder} was trained for {kept['updates']} updates, not {updates}; choose another --out")
        return kept
    objective = dict(config["task"]["objective"])
    if "steps" in objective:
        objective["steps"] = updates
    task = {**config["task"], "objective": objective}
    stop = train({**config, "task": task, "steps": updates, "seed": seed}, folder)
    if stop:
        raise SystemExit(stop.code)
    judged = {"updates": updates, "seed": seed, "results": judge(folder, task["proposals"], seed)}
    temporary = folder / f"{FILE}.part"
    temporary.write_text(json.dumps(judged, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / FILE)
    return judged


def judge(folder: Path, proposals: int, seed: int) -> list[dict[str, Any]]:
    """AP, AP50 and latency at every number of steps, merged and of the last step alone."""
    from launch.evaluation import coco, detection
    from launch.pipelines.detect import load
    from train.workdir import read_config

    detector, truth = load(folder), detection.held_out(read_config(folder), "", "")
    content, images = detection.load_json(truth.source), {image.id for image in truth.images}
    rows = []
    for options in detection.cells(["steps"], 1, proposals):
        options = dataclasses.replace(options, seed=seed)
        stats = coco.judge(content, detection.detect(detector, truth.images, options), images).stats
        milliseconds, _ = detection.latency(detector, truth.images, options)
        rows.append(
            {"steps": options.steps, "merge": options.merge, "milliseconds": milliseconds}
            | {name: stats[name] for name in NUMBERS}
        )
        print(f"{folder.name}  " + "  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def summary(rows: Mapping[str, Sequence[Mapping[str, Any]]], updates: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row for every recipe and way to sample: means over seeds with intervals."""
    from launch.evaluation.images import estimate

    report = []
    for name, cells in rows.items():
        for results in zip(*(cell["results"] for cell in cells), strict=True):
            about = {"recipe": name, "updates": updates[name], "seeds": len(cells)}
            about |= {key: results[0][key] for key in ("steps", "merge")}
            for number in NUMBERS:
                about[number] = dataclasses.asdict(estimate([result[number] for result in results]))
            about["milliseconds"] = min(result["milliseconds"] for result in results)
            report.append(about)
    return report


def table(report: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| recipe | updates | steps | AP | AP50 | ms / image |",
        "|---|---|---|---|---|---|",
    ]
    for row in report:
        numbers = ("{value:.3f} [{low:.3f}, {high:.3f}]".format(**row[number]) for number in NUMBERS)
        way = "" if row["steps"] == 1 else (", merged" if row["merge"] else ", last only")
        about = f"| {row['recipe']} | {row['updates']} | {row['steps']}{way} |"
        lines.append(f"{about} {' | '.join(numbers)} | {row['milliseconds']:.1f} |")
    seeds = report[0]["seeds"] if report else 0
    about = f"Means over {seeds} seeds with bootstrap intervals (95 %); latency of one image, the best of the seeds."
    return "\n".join([*lines, "", about])
