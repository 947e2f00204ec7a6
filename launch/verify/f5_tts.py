"""Golden rows of the F5-TTS family: see the README of the folder for what each file holds."""

from launch.verify import f5_frontend, f5_network, f5_pipeline, f5_sampling, f5_training, f5_vocoders
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report


def verify(folder: GoldenFolder, report: Report) -> None:
    """Checks everything in ``folder`` that this code has a counterpart for, and lists the rest."""
    variants = f5_network.Variants(folder)
    f5_network.check(folder, variants, report)
    f5_sampling.check(folder, variants, report)
    f5_training.check(folder, variants, report)
    f5_frontend.check(folder, report)
    f5_vocoders.check(folder, report)
    f5_pipeline.check(folder, report)
    report.unchecked += [f"model {name}: no {backbone} here" for name, backbone in variants.unknown.items()]
    report.unchecked += folder.unchecked()
