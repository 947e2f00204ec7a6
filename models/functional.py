"""The one place where Flax NNX modules become plain functions on plain dicts.

Everything outside a module (train step, sharding, checkpoints, samplers, export) sees ``{"params": ..., "stats":
...}``: nested dicts of arrays with string keys. NNX itself runs only while JAX traces, so its object graph costs
nothing per step.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

Variables = dict[str, Any]  # {"params": nested dict, "stats": nested dict}; string keys only


@dataclasses.dataclass(frozen=True)
class Functional:
    """A module as pure functions.  Make one with ``functional``."""

    ctor: Callable[[nnx.Rngs], nnx.Module]

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables.  Call it under ``jax.jit`` with output shardings to create a large model in place."""
        return _to_variables(nnx.state(self.ctor(nnx.Rngs(key))))

    def abstract(self) -> Variables:
        """``jax.ShapeDtypeStruct`` of every variable; nothing is allocated."""
        _, state = self._split
        return _to_variables(state)

    def apply(self, variables: Variables, *args, method: str = "__call__", **kwargs) -> tuple[Any, dict[str, Any]]:
        """Calls ``method`` of the module holding ``variables``.

        Returns ``(output, stats)`` where ``stats`` are the running statistics after the call ({} for most models).

        Raises:
          ValueError: a variable of the module is missing, or ``variables`` holds one that it does not have.
        """
        graph, state = self._split
        module = nnx.merge(graph, _from_variables(variables, state))
        out = getattr(module, method)(*args, **kwargs)
        stats = _to_variables(nnx.state(module))["stats"] if variables.get("stats") else {}
        return out, stats

    @functools.cached_property
    def _split(self):
        return nnx.split(nnx.eval_shape(lambda: self.ctor(nnx.Rngs(0))))


def functional(ctor: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
    """``functional(lambda rngs: DiT(dim=256, ..., rngs=rngs))``: module constructor -> pure functions."""
    return Functional(ctor)


def _collection(variable: nnx.Variable) -> str:
    if isinstance(variable, nnx.Param):
        return "params"
    if isinstance(variable, nnx.RngState):
        # A key in the state would be saved, averaged and differentiated; dropout takes its key as an argument instead.
        raise ValueError("modules may not hold random state: pass `key` to the call, keep no nnx.Rngs")
    return "stats"


def _to_variables(state) -> Variables:
    out: Variables = {"params": {}, "stats": {}}
    for path, variable in nnx.to_flat_state(state):
        node = out[_collection(variable)]
        for part in path[:-1]:
            node = node.setdefault(str(part), {})  # indices of nnx.List become string keys
        node[str(path[-1])] = variable.get_value()
    return out


def _from_variables(variables: Mapping[str, Any], abstract):
    flat, wanted = [], set()
    for path, variable in nnx.to_flat_state(abstract):
        name = (_collection(variable), *map(str, path))
        wanted.add(name)
        node: Any = variables
        for part in name:
            if not isinstance(node, Mapping) or part not in node:
                raise ValueError(f"variable {'/'.join(name)} is missing: these variables belong to another model")
            node = node[part]
        flat.append((path, variable.replace(node)))
    extra = sorted("/".join(name) for name in _names(variables) if name not in wanted)
    if extra:
        raise ValueError(f"the model has no variable {extra[0]} ({len(extra)} unknown in all)")
    return nnx.from_flat_state(flat)


def _names(tree: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [tuple(str(k.key) for k in path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
