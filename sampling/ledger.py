"""What a result cost.  Every sampler and search returns one, so quality is always compared at equal compute."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ledger:
    """Costs of ONE output row.  Guidance counts both of its halves; verifiers and tokens are counted apart.

    The fields are pytree leaves: exact Python numbers outside jit, scalars out of a jitted function.
    """

    network_calls: Any = 0
    verifier_calls: Any = 0
    tokens: Any = 0

    def __add__(self, other: "Ledger") -> "Ledger":
        return jax.tree.map(lambda a, b: a + b, self, other)
