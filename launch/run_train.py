"""Trains whatever a config describes; run it again to go on where it stopped.

    python -m launch.run_train --config=configs/f5_tts.py:demo --workdir=runs/demo [--config.optim.lr=1e-4]

Exit codes: 0 done, 2 bad input, 85 preempted (queue again), 86 diverged (do not queue again), 130 Ctrl-C.
"""

import faulthandler
import signal
import sys

from absl import flags

from launch import distributed
from launch.flags import define_config, run

CONFIG = define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if it does not exist.", required=True)
INIT_FROM = flags.DEFINE_string(
    "init_from", None, "Run folder or converted checkpoint whose parameters a new run begins with."
)
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, "Go on although config or data differ from those that the run was started with."
)
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> int:
    """Trains; returns the exit code."""
    del argv
    faulthandler.register(signal.SIGUSR1)  # `kill -USR1` shows where a run that seems stuck is
    distributed.initialize()
    from train.preempt import DIVERGED, Diverged
    from train.run import train

    try:
        stop = train(
            CONFIG.value, WORKDIR.value, init_from=INIT_FROM.value, allow_config_change=ALLOW_CONFIG_CHANGE.value
        )
    except Diverged as error:
        print(f"diverged: {error}", file=sys.stderr, flush=True)
        return DIVERGED
    return stop.code if stop else 0


if __name__ == "__main__":
    run(main)
