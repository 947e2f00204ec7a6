"""A run of the toy task, for tests of everything around the step: ``--config=tests/train/toy_config.py``."""

from typing import Any

from ml_collections import ConfigDict

from configs.base import base


def get_config() -> ConfigDict:
    """The locked config; intervals are chosen so that nothing coincides with everything."""
    c: Any = base()
    c.steps = 20
    c.task = ConfigDict({"type": "tests.train.toy_run:ToyRunTask"})
    c.model = ConfigDict({"type": "tests.train.toy_run:ToyModel", "hidden": 16})
    c.data = ConfigDict({"type": "tests.train.toy_run:ToyData", "rows": 16, "bad_from": -1})
    c.optim.lr = 1e-2
    c.optim.warmup_steps = 5
    c.ema.decays = (0.9, 0.99)
    c.log.every = 3
    c.evaluation.every = 4
    c.sample.every = 8
    c.checkpoint.every = 5
    c.max_skipped = 3
    c.compile_cache = False  # tests have their own, see conftest.py
    return c.lock()
