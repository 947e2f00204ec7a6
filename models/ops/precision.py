"""Number formats: float32 master parameters, an optional 16-bit compute type, float32 where sums and exponentials live.

Modules hold float32 parameters and take a ``dtype`` for their matrix products; norms, softmax, rotary phases and
losses stay in float32 inside the functions that compute them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

COMPUTE_DTYPES = ("float32", "bfloat16", "float16", "float64")


def compute_dtype(name: str) -> jnp.dtype:
    """``"bfloat16"`` -> dtype.

    Raises:
      ValueError: the name is not one of ``COMPUTE_DTYPES``.
    """
    if name not in COMPUTE_DTYPES:
        raise ValueError(f"precision.compute is {name!r}; expected one of {', '.join(COMPUTE_DTYPES)}")
    return jnp.dtype(name)


def cast_floating(tree: Any, dtype: DTypeLike) -> Any:
    """Casts the floating-point leaves of ``tree``; integers, booleans and keys pass through untouched."""

    def cast(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def accumulation_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Where a norm or softmax over ``dtype`` numbers is computed: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)
