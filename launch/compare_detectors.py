"""Trains the detectors' objectives on equal arithmetic and several seeds, and prints how good each is by steps.

    python -m launch.compare_detectors --out=runs/detectors [--seeds=3] [--updates=2000]

Recipes: plain diffusion (configs/diffusion_det.py), the released ConsistencyDet recipe and consistency training
(configs/consistency_det.py), of one variant: `digits`, scenes of handwritten digits.  One update costs them differently
much, so --updates counts those of the cheapest, and the others make as many as cost the same FLOPs.

A cell is one recipe with one seed: <out>/<recipe>-<seed>/ is its run, cell.json in it says that it is finished.  Run
the command again and finished cells are kept, an interrupted one goes on; with more --seeds only the new ones are
trained.  Writes <out>/comparison.json and, as Markdown, <out>/comparison.md.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from data.errors import UserError
from launch.flags import run

OUT = flags.DEFINE_string("out", None, "Folder of the comparison; made if it does not exist.", required=True)
VARIANT = flags.DEFINE_string("variant", "digits", "Of the configs: digits, or tiny for a test.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each recipe.", lower_bound=1)
UPDATES = flags.DEFINE_integer("updates", 0, "Of the cheapest recipe; 0 = the config's.", lower_bound=0)
RECIPES = flags.DEFINE_list("recipes", ["diffusion", "released", "consistency"], "Which to compare.")

FILE = "cell.json"
FAMILIES = {
    "diffusion": ("diffusion_det", ""),
    "released": ("consistency_det", "_released"),
    "consistency": ("consistency_det", ""),
}
NUMBERS = ("AP", "AP50")


def main(argv: list[str]) -> None:
    """Trains what is missing, judges it, prints the table."""
    del argv
    if unknown := [name for name in RECIPES.value if name not in FAMILIES]:
        raise UserError(f"--recipes={unknown[0]} is not known; choose from {', '.join(FAMILIES)}")
    from train.compile import enable_compile_cache

    enable_compile_cache()
    out = Path(OUT.value)
    configs = {name: config_of(name, VARIANT.value) for name in RECIPES.value}
    updates = budgets(configs, UPDATES.value, out)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in configs}
    for seed in range(SEEDS.value):  # every recipe's first seed before anyone's second
        for name, config in configs.items():
            rows[name].append(cell(out / f"{name}-{seed}", config, updates[name], seed))
    report = summary(rows, updates)
    (out / "comparison.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "comparison.md").write_text(table(report) + "\n", encoding="utf-8")
    print(table(report))


def config_of(recipe: str, variant: str) -> dict[str, Any]:
    """A recipe's config as plain values."""
    import importlib

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


if __name__ == "__main__":
    run(main)
