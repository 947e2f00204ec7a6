"""A public detector, or a backbone trained on ImageNet, as a folder that every command of ours takes."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from data.coco import Categories, read_categories
from data.detection_spec import DetectionSpec, rounded
from data.errors import UserError
from launch.conversion.folder import check_new, write_folder
from launch.conversion.speech import describe
from models.convert import detection
from models.convert.f5_tts import Misfit
from models.functional import functional
from train.assemble import plain
from train.components import bind

SHORT, LONGEST = 800, 1333  # sides of COCO's images as the releases see them


def convert_detector(
    config: Mapping[str, Any], checkpoint: str, out: str, *, classes: str = "", seed: int = 0
) -> list[str]:
    """Reads ``checkpoint`` as the network of ``config`` and writes the folder ``out``.

    Args:
      config: of a detector.
      checkpoint: ``.pth``, ``.pkl`` or ``.safetensors`` of a detector, or of a backbone alone, whose pyramid and head
        then start fresh.
      classes: a COCO-format json with the classes under ``categories``.  If they are another number than the
        checkpoint's, its classifiers start fresh.  Without it the checkpoint's classes are called by number.
      seed: of what starts fresh.

    Returns:
      The report, line by line.

    Raises:
      UserError: anything that does not fit; nothing is written then.
    """
    target = check_new(out)
    if not Path(checkpoint).is_file():
        raise UserError(f"--checkpoint={checkpoint}: no such file")
    values: dict[str, Any] = json.loads(json.dumps(plain(config)))
    try:
        tensors = detection.load(checkpoint)
    except ValueError as error:
        raise UserError(str(error)) from error
    theirs = detection.num_classes(tensors)
    spec = _spec(values.get("data", {}), classes, theirs, checkpoint)
    network = bind(values["model"], "model")
    model = functional(lambda rngs: network(num_classes=len(spec.categories), rngs=rngs))
    try:
        variables, report = detection.from_official(
            tensors,
            model.abstract(),
            lambda: jax.device_get(jax.jit(model.init)(jax.random.key(seed, impl="rbg"))),  # compiles fast
            new_classes=theirs is not None and theirs != len(spec.categories),
        )
    except Misfit as error:
        print("\n".join(describe(error.report)))
        raise UserError(f"{checkpoint}: {error}") from error
    about = {"checkpoint": Path(checkpoint).name, **dataclasses.asdict(report)}

    def write_assets(folder: Path) -> None:
        spec.save(folder)
        (folder / "conversion.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    write_folder(target, values, write_assets, variables, step=0)
    lines = describe(report)
    if report.fresh:
        lines.append(f"fresh {len(report.fresh)}, to be trained: {', '.join(report.fresh[:4])} …")
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return [*lines, f"{out}: {count:,} parameters, {len(spec.categories)} classes"]


def _spec(data: Mapping[str, Any], classes: str, count: int | None, checkpoint: str) -> DetectionSpec:
    if classes:
        categories = read_categories(classes)
    elif count:
        numbers = range(1, count + 1)
        categories = Categories(tuple(f"class {i}" for i in numbers), tuple(numbers), (0,) * count)
    else:
        raise UserError(f"{checkpoint} is a backbone alone; name a json with the classes to learn by --classes=FILE")
    short, longest = max(data.get("short", (SHORT,))), data.get("longest", LONGEST)
    return DetectionSpec(categories, short, longest, (rounded((short, longest)), rounded((longest, short))))
