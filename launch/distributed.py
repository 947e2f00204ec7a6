"""Several processes as one machine.  Must run before anything asks for a device."""

import jax
from absl import flags

from data.errors import UserError

_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, for runs of several processes.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)
_TIMEOUT = flags.DEFINE_integer("start_timeout", 1800, "Seconds to wait for the other processes to start.")


def initialize() -> None:
    """Joins the other processes, if the flags name any.

    Raises:
      UserError: flags that do not belong together, or processes that do not come.
    """
    where, count, number = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    if where is None and count is None and number is None:
        return
    if where is None or count is None or number is None:
        raise UserError("--coordinator, --num_processes and --process_id belong together; give all three or none")
    if number >= count:
        raise UserError(f"--process_id={number} must be below --num_processes={count}")
    try:
        jax.distributed.initialize(where, count, number, initialization_timeout=_TIMEOUT.value)
    except Exception as error:
        raise UserError(f"the {count} processes did not meet at {where}: {error}") from error
