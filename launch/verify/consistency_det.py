"""Golden rows of the detectors that denoise boxes: see the README of the folder for what each file holds."""

from launch.verify import det_coco, det_network, det_sampling, det_training
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report


def verify(folder: GoldenFolder, report: Report) -> None:
    """Checks everything in ``folder`` that this code has a counterpart for, and lists the rest."""
    network = det_network.Network(folder)
    det_network.check(folder, network, report)
    det_training.check(folder, network, report)
    det_sampling.check(folder, network, report)
    det_coco.check(folder, report)
    report.unchecked += folder.unchecked()
