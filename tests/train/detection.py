"""What the tests of detectors' training share."""

from pathlib import Path

import numpy as np

from train.objectives.matching import Targets

GOLDEN = Path(__file__).parents[1] / "golden" / "consistency_det"


def targets_of(stored) -> Targets:
    """The padded targets of a golden file."""
    size = stored["image_whwh"][:, [1, 0]]
    return Targets(stored["gt_boxes_xyxy"], stored["gt_labels"].astype(np.int32), stored["gt_mask"], size)
