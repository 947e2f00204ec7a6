"""Tree of Frames: beam search over something generated chunk by chunk (Video-T1, https://arxiv.org/abs/2503.18942).

    stages = (Stage(looks_right, branching=8, keep=4), Stage(moves_well, branching=2, keep=2, chunks=6),
              Stage(good_as_a_whole, branching=2, keep=1))
    extend = lambda frames, start, number: sample(guide_after(frames), start, grid)
    found = TreeOfFrames(stages)(extend, Keyed(key, ids), (batch, *chunk), condition)

What makes a good first frame, a good motion and a good film differs, so every stage has its own verifier and branching.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sampling.ledger import Ledger
from sampling.noise import Noise
from sampling.sample import Sample
from sampling.search.candidates import (
    ALL_AT_ONCE,
    NUMBER,
    Found,
    Round,
    Where,
    best,
    check_sizes,
    check_verifier,
    fits,
    found,
    pick,
    plain,
    price,
    scaled,
)
from sampling.search.verifier import Ensemble, Verifier, members, score


class Frames(NamedTuple):
    """What has been generated; verifiers of a tree get this as their samples.

    Attributes:
      values: [b, chunks, ...] with zeros where nothing is yet.
      made: scalar, how many chunks there are.
    """

    values: jax.Array
    made: jax.Array


Extend = Callable[[Frames, jax.Array, jax.Array], Sample]
"""(frames so far, standard normal start [b, ...], the candidate's number) -> Sample, the next chunk [b, ...]."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Some chunks in a row that are chosen alike.

    Attributes:
      verifier: scores the frames including the new chunk.
      branching: how often each kept beginning is continued.
      keep: how many of the continuations are kept.
      chunks: how many chunks the stage makes.
    """

    verifier: Verifier | Ensemble
    branching: int
    keep: int
    chunks: int = 1

    def __post_init__(self) -> None:
        check_sizes(branching=self.branching, keep=self.keep, chunks=self.chunks)


@dataclasses.dataclass(frozen=True)
class TreeOfFrames:
    """Beam search whose verifier and width depend on the stage; keep = branching = 1 is plain generation.

    Attributes:
      stages: in order.
      where: chunks (of candidates) and devices.
    """

    stages: tuple[Stage, ...]
    where: Where = ALL_AT_ONCE

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a tree of frames needs at least one stage")
        for parents, stage in self._widths():
            if stage.keep > parents * stage.branching:
                raise ValueError(f"cannot keep {stage.keep} of {parents} × {stage.branching} continuations")

    def _widths(self) -> list[tuple[int, Stage]]:
        """(how many beginnings there are, how they are continued) of every chunk."""
        widths, parents = [], 1
        for stage in self.stages:
            widths += [(parents, stage), *[(stage.keep, stage)] * (stage.chunks - 1)]
            parents = stage.keep
        return widths

    def cost(self, extend: Extend, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Ledger:
        """What the search will cost each prompt; traces ``extend``, runs nothing."""
        one, total = self._price(extend, shape, dtype), Ledger()
        for parents, stage in self._widths():
            total += scaled(one, parents * stage.branching, len(members(stage.verifier)))
        return total

    def within(self, budget: int, extend: Extend, shape: tuple[int, ...], dtype: Any = jnp.float32) -> "TreeOfFrames":
        """This search with every stage's branching multiplied by the same whole number, as ``budget`` allows."""
        times = fits(budget, self.cost(extend, shape, dtype).network_calls)
        wider = tuple(dataclasses.replace(stage, branching=stage.branching * times) for stage in self.stages)
        return dataclasses.replace(self, stages=wider)

    def _price(self, extend: Extend, shape: tuple[int, ...], dtype: Any) -> Ledger:
        frames, start = self._empty(shape, dtype), jax.ShapeDtypeStruct(shape, dtype)
        one, chunk = price(extend, frames, start, NUMBER)
        if chunk.shape != shape:
            raise ValueError(f"extend must return the next chunk {list(shape)}, got {list(chunk.shape)}")
        return one

    def _empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """``Frames``, abstractly."""
        return Frames(jax.ShapeDtypeStruct((shape[0], len(self._widths()), *shape[1:]), dtype), NUMBER)  # pyright: ignore

    def __call__(
        self, extend: Extend, noise: Noise, shape: tuple[int, ...], condition: Any = None, dtype: Any = jnp.float32
    ) -> Found:
        """Generates all chunks for all prompts of a batch.

        Args:
          extend: the sampler of one chunk.
          noise: a draw per candidate, counted through all chunks.
          shape: [b, ...] of one chunk.
          condition: what the verifiers are told about the prompts, leading axes b.
          dtype: of the chunks.

        Returns:
          ``x`` is [b, chunks, ...]; there is a round for the first chunk of each stage and one, with an axis of chunks
          in front, for the others.

        Raises:
          ValueError: a verifier does not return one real number per row, or ``extend`` no chunk (before compiling).
        """
        noise.check(sum(parents * stage.branching for parents, stage in self._widths()), shape)
        empty = self._empty(shape, dtype)
        for stage in self.stages:
            check_verifier(stage.verifier, empty, condition, shape[0])
        ledger = self.cost(extend, shape, dtype)

        def grow(beam: jax.Array, made: Any, first: Any, stage: Stage) -> tuple[jax.Array, jax.Array, Round]:
            """One chunk more: [parents, b, chunks, ...] to [keep, b, chunks, ...], and the scores of what is kept."""

            def child(i: jax.Array) -> tuple[jax.Array, jax.Array]:
                values = beam[i // stage.branching]
                start = noise.at(first + i, shape, dtype)
                chunk = extend(Frames(values, jnp.asarray(made)), start, first + i).x
                frames = Frames(values.at[:, made].set(chunk), jnp.asarray(made) + 1)
                return chunk, score(stage.verifier, frames, condition, shape[0])

            chunks, scores = self.where.each(child, len(beam) * stage.branching)
            chosen = best(scores, stage.keep)
            kept = pick(beam, chosen // stage.branching).at[:, :, made].set(pick(chunks, chosen))
            return kept, pick(scores, chosen), Round(plain(scores), chosen, None)

        def stretch(beam: jax.Array, made: int, first: int, stage: Stage) -> Any:
            """The chunks of a stage after its first, all of equal width: one program."""

            def more(beam: jax.Array, k: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Round]]:
                beam, scores, choice = grow(beam, made + k, first + k * stage.keep * stage.branching, stage)
                return beam, (scores, choice)

            beam, (scores, rounds) = jax.lax.scan(more, beam, jnp.arange(stage.chunks - 1))
            return beam, scores[-1], rounds

        beam, scores = jnp.zeros((1, *empty.values.shape), dtype), jnp.zeros((0,))
        made, first, rounds = 0, 0, []
        for stage in self.stages:
            children = len(beam) * stage.branching
            beam, scores, choice = grow(beam, made, first, stage)
            rounds.append(choice)
            made, first = made + 1, first + children
            if stage.chunks > 1:
                beam, scores, choice = stretch(beam, made, first, stage)
                rounds.append(choice)
                made, first = made + stage.chunks - 1, first + (stage.chunks - 1) * stage.keep * stage.branching
        return found(beam[0], scores[0], None, tuple(rounds), ledger)
