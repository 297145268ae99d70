"""What `Model.score` takes, and under which lifetimes an answer is scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from lt_jax.ask import Answer
from lt_jax.decode import Completion
from lt_jax.errors import UserError
from lt_jax.layout.row import Row
from lt_jax.lifetimes import Lifetimes
from lt_jax.models.config import DecoderConfig


def each(what: Callable, texts):
    """`what` of the one thing to score, or a list with that of each, where they are in a list (at any depth).

    Raises:
        UserError: there is something among them that cannot be scored.
    """
    if _one(texts):
        return what(texts)
    if isinstance(texts, Sequence | np.ndarray | jax.Array):
        return [each(what, text) for text in texts]
    raise UserError(
        f"score takes a text, token ids, a Row, an Answer, a Completion, or lists of those, not {type(texts).__name__}"
    )


def _one(texts) -> bool:
    if isinstance(texts, np.ndarray | jax.Array):
        return texts.ndim < 2
    ids = isinstance(texts, Sequence) and len(texts) > 0 and isinstance(texts[0], int | np.integer)
    return ids or isinstance(texts, str | Row | Answer | Completion)


def completion_of(answer: Answer | Completion, temperature: float | None, dense: bool) -> Completion:
    """The completion of an answer, without what was evicted if it is scored `dense`.

    Raises:
        UserError: with these settings the log-probs would not be what `Model.score` says they are.
    """
    done = answer.completion if isinstance(answer, Answer) else answer
    if done.finish == "refused":
        raise UserError(f"the prompt was refused, so there is nothing to score: {done.why}")
    if dense:
        done = dataclasses.replace(done, record=None, unrecorded=False)
    if isinstance(answer, Answer):
        how = answer.asked.sampling
        if done.unrecorded:
            raise UserError("the evictions of this answer were not recorded: ask with records=True, or score it with "
                            "dense=True, as if there had been none")  # fmt: skip
        if temperature is None and (how.top_k or how.top_p < 1):
            narrowed = f"top_k={how.top_k}" if how.top_k else f"top_p={how.top_p}"
            raise UserError(f"this answer was drawn with {narrowed}, which score does not know: give it a temperature, "
                            "by which alone to score")  # fmt: skip
    return done


def lifetimes_of(done: Completion, model: DecoderConfig) -> Lifetimes:
    """The lifetimes of a completion; UserError where nobody recorded them, or for another model than this."""
    lifetimes = done.lifetimes()
    layers, heads = lifetimes.death.shape[1:-1] or (1, 1)
    if layers not in (1, model.layers) or heads not in (1, model.kv_heads):
        raise UserError(
            f"the evictions of this answer were recorded for {layers} layers and {heads} kv heads, and this model has "
            f"{model.layers} and {model.kv_heads}: score it with the model that wrote it, or with dense=True"
        )
    return lifetimes
