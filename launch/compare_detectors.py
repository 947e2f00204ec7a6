"""Trains the detectors' objectives on equal arithmetic and several seeds, and prints how good each is by steps.

    python -m launch.compare_detectors --out=runs/detectors [--seeds=3] [--updates=2000]

Recipes: plain diffusion (configs/diffusion_det.py), the released ConsistencyDet recipe and consistency training
(configs/consistency_det.py), of one variant: `digits`, scenes of handwritten digits.  One update costs them differently
much, so --updates counts those of the cheapest, and the others make as many as cost the same FLOPs.

A cell is one recipe with one seed: <out>/<recipe>-<seed>/ is its run, cell.json in it says that it is finished.  Run
the command again and finished cells are kept, an interrupted one goes on; with more --seeds only the new ones are
trained.  Writes <out>/comparison.json and, as Markdown, <out>/comparison.md.
"""

import json
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


def main(argv: list[str]) -> None:
    """Trains what is missing, judges it, prints the table."""
    del argv
    from launch.evaluation.detector_comparison import FAMILIES, budgets, cell, config_of, summary, table
    from train.compile import enable_compile_cache

    if unknown := [name for name in RECIPES.value if name not in FAMILIES]:
        raise UserError(f"--recipes={unknown[0]} is not known; choose from {', '.join(FAMILIES)}")
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


if __name__ == "__main__":
    run(main)
