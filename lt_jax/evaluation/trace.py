"""A completion as the lifetimes of its tokens: who is what, who sees whom, who is gone when.

The engine says which tokens it sampled and which it fed; `layout.closing` says what closes a thought and when its
tokens die. Laying a completion out again therefore gives the row it would be in training, and the number of keys that
each query sees in that row must be what the engine counted.
"""

from __future__ import annotations

import numpy as np

from lt_jax.layout.closing import ANY, Closing
from lt_jax.layout.row import Role, Row, Writer
from lt_jax.lifetimes import visible


def retrace(prompt, tokens, forced, closing: Closing | None, eos: int | None = None) -> Row:
    """The row of a prompt and the tokens decoded after it.

    Args:
        prompt: [P] ids, not compressed.
        tokens: [N] ids fed or sampled after it.
        forced: [N] bool, fed.
        closing: how the scheme closes a thought; None for vanilla.
        eos: id of the end token.
    """
    writer = Writer()
    writer.write(prompt, Role.PROMPT)
    plain = Role.TEXT if closing is None or closing.opens is not None else Role.THOUGHT
    start, number, i, last_output = len(writer), 0, 0, None
    while i < len(tokens):
        if closing is not None and _closes(closing, tokens, forced, i, len(writer) - start):
            head = len(writer)
            inner = _block(writer, closing, start, head)
            writer.end(*inner, head + closing.thought_dies)
            thought = number if inner[0] < inner[1] or closing.opens is None else -1
            writer.columns["thought"][start:head] = [thought] * (head - start)
            if closing.opens is not None:
                writer.columns["role"][slice(*inner)] = [Role.THOUGHT] * (inner[1] - inner[0])
            block = writer.new_block()
            for offset, token in enumerate(tokens[i : i + len(closing)]):
                dies = int(closing.death[offset])
                index = writer.write(
                    [token], int(closing.role[offset]), thought=number, since=start if closing.since[offset] else 0,
                    gist=block if closing.gist[offset] else -1,
                )  # fmt: skip
                if dies < len(closing) + 1:
                    writer.end(index, index + 1, head + dies)
                if closing.role[offset] == Role.OUTPUT:
                    if closing.replaces_output and last_output is not None:
                        writer.end(last_output, last_output + 1, index)
                    last_output = index
            i, start, number = i + len(closing), len(writer), number + 1
            continue
        is_end = tokens[i] == eos and not forced[i]
        writer.write([tokens[i]], Role.EOS if is_end else plain, thought=-1 if closing is None or is_end else number)
        i += 1
    return writer.row()


def _closes(closing: Closing, tokens, forced, i: int, written: int) -> bool:
    """Whether tokens[i] closes a thought that already has `written` tokens, and all that must follow it is there."""
    if i + len(closing) > len(tokens) or not all(forced[i + 1 : i + len(closing)]):
        return False
    if closing.every:
        return written + 1 == closing.every
    return all(want in (ANY, have) for want, have in zip(closing.tokens, tokens[i : i + len(closing)], strict=True))


def _block(writer: Writer, closing: Closing, start: int, head: int) -> tuple[int, int]:
    """The indices [start, stop) of what dies when the token at `head` closes the thought that began at `start`."""
    if closing.opens is None:
        return start, head
    tokens = writer.columns["tokens"]
    shut = next((k for k in range(head - 1, start - 1, -1) if tokens[k] == closing.shuts), None)
    opened = next((k for k in range((shut or start) - 1, start - 1, -1) if tokens[k] == closing.opens), None)
    return (opened, shut + 1) if shut is not None and opened is not None else (head, head)


def matrix(row: Row, gist_rule: str = "causal") -> np.ndarray:
    """Who sees whom: bool [N, N], queries downwards, written out by the rule of `lt_jax.lifetimes`."""
    index = np.arange(len(row))
    return visible(index, row.death, index, row.since, row.gist, row.gist, gist_rule)
