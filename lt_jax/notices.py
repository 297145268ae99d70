"""Lines about answers that cannot be what was asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence

from lt_jax.decode.counts import Cost

SHORT = 64  # tokens of an answer


def to_stderr(line: str) -> None:
    """Shows a line on stderr, apart from what the program was asked to print."""
    print(line, file=sys.stderr, flush=True)


def beyond(lengths: Sequence[int], max_new: int, positions: int) -> str:
    """A line on prompts whose answers may reach the end of the positions that the model was made for; empty if none.

    A row ends there, as in vLLM at `max_model_len`. (transformers warns and continues.)

    Args:
        lengths: tokens of each prompt.
        max_new: most tokens sampled for one; gists and output tokens come on top.
    """
    late = sum(length + max_new > positions for length in lengths)
    if not late:
        return ""
    return (
        f"warning: {late:,} of {len(lengths):,} prompts and max_new ({max_new:,}) together are longer than the "
        f"{positions:,} positions that the model was made for; an answer that reaches them is cut off there"
    )


def uncompressed(costs: Sequence[Cost], name: str = "") -> str:
    """A line on a method that should compress its thoughts and hardly ever did; empty if it did.

    Args:
        costs: answer by answer. Those of less than `SHORT` tokens need not have had anything to compress.
    """
    long = [cost for cost in costs if cost.generated >= SHORT]
    thoughts = sum(cost.compressions for cost in long)
    if thoughts >= len(long) / 2:
        return ""
    return (
        f"warning: {name + ': ' if name else ''}next to nothing was compressed: {thoughts:,} thoughts in {len(long):,} "
        "answers; the model may not have learnt to end a thought (max_thought ends one by force)"
    )


def broken(finishes: Iterable[str], name: str = "") -> str:
    """A line on answers that ended because the model's logits were not numbers; empty if there are none."""
    finishes = list(finishes)
    bad = finishes.count("nan")
    if not bad:
        return ""
    return (
        f"warning: {name + ': ' if name else ''}{bad:,} of {len(finishes):,} answers ended where the model's logits "
        "were NaN or infinite; the weights may be broken, or their dtype too narrow"
    )


def refused(why: Mapping[int, str], total: int) -> str:
    """A line on prompts (by number, of `total`) that could not be answered; empty if there are none."""
    if not why:
        return ""
    first = min(why)
    return f"warning: {len(why):,} of {total:,} prompts were refused, the first of them prompt {first}: {why[first]}"
