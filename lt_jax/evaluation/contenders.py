"""Models as contenders of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from lt_jax.data.problem import Problem
from lt_jax.decode import DecodeConfig, Engine, Request
from lt_jax.decode.pieces import group_size
from lt_jax.decode.setup import cache_bytes
from lt_jax.evaluation.run import Contender
from lt_jax.layout.row import Row
from lt_jax.model import Model

WARM_TOKENS = 2


def contender(name: str, model: Model, config: DecodeConfig, *, max_new: int, seed: int = 0) -> Contender:
    """A contender that answers with `model`, decoding as `config` says.

    Args:
        max_new: the most tokens that are sampled for a problem.
        seed: of sampling; problem number i has seed + i.
    """
    # The engine is made when it is needed and dropped afterwards, so that only one contender's cache is in memory.
    made: list[Engine] = []
    reached = [0]  # slots of a row that its cache has grown to

    def engine() -> Engine:
        if not made:
            made.append(model.engine(config))
        return made[0]

    def complete(prompts):
        try:
            yield from engine().run(Request(prompt, max_new, seed + i, i) for i, prompt in enumerate(prompts))
        finally:
            reached[0] = made[0].cache.capacity if made else reached[0]
            made.clear()

    def warm(prompts):
        warm_up(engine(), prompts, min(WARM_TOKENS, max_new))

    row_bytes = lambda keys: round(cache_bytes(model.config, config, model.rules(config), keys or reached[0]))
    return Contender(
        name, model.origin, model.scheme, model.special, complete, lambda problem: ask(model, problem),
        model.text, model.pieces, model.tokenize, warm, row_bytes,
    )  # fmt: skip


def warm_up(engine: Engine, prompts: Sequence[Row], max_new: int = WARM_TOKENS) -> None:
    """Compiles everything that answering `prompts` may run: the decoding block, and prefill for groups of any size.

    Prompts that are read in pieces of the same sizes are read together, in groups of 1, 2, 4 ... rows. Which groups
    occur depends on which rows become free at the same time, so each of them is read once here.
    """
    made = set()
    for prompt in prompts:
        cut = engine.cut(prompt)
        size, most = 1, min(engine.config.rows, group_size(cut))
        while size <= most:
            programs = {(size, each.padded, each.evict, place == len(cut) - 1) for place, each in enumerate(cut)}
            if not programs <= made:
                for _ in engine.run([Request(prompt, max_new)] * size):
                    pass
            made |= programs
            size *= 2


def ask(model: Model, problem: Problem) -> Row:
    """A problem as a prompt."""
    return model.ask(problem.text, problem.system)
