"""Memento's layout (arXiv 2604.09852): a block of reasoning dies when its written summary ends.

In `<|block_start|>` block `<|block_end|> <|summary_start|>` summary `<|summary_end|>` the block, with both its markers,
is seen up to and including `<|summary_end|>`; the summary, with both its markers, lives on. All of it is sampled and
trained. The markers are read from the tokens, so a row and a decoder that watches the same ids agree on any text, also
on text whose markers do not match: a block without a summary never dies, a marker without its partner is plain text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lt_jax.errors import UserError
from lt_jax.layout.row import Role, RowWriter
from lt_jax.layout.special import SpecialTokens


@dataclasses.dataclass(frozen=True)
class Block:
    """One block and its summary, as places in the response: block start..stop-1 dies at `end`, after the summary."""

    start: int
    stop: int
    end: int


def find_blocks(ids: Sequence[int], special: SpecialTokens) -> list[Block]:
    """The blocks that die. A block is the latest block_start..block_end before a summary_end."""
    if special.memento is None:
        raise UserError("the token table has no block and summary markers; memento needs the four of them")
    block_start, block_end, _, summary_end = special.memento
    opened, stop, found = None, None, []
    for place, token in enumerate(ids):
        if token == block_start:
            opened, stop = place, None
        elif token == block_end and opened is not None and stop is None:
            stop = place + 1
        elif token == summary_end and stop is not None:
            found.append(Block(opened, stop, place + 1))
            opened, stop = None, None
    return found


def write_memento(writer: RowWriter, ids: Sequence[int], special: SpecialTokens, first: int = 0) -> int:
    """Appends a response: blocks as THOUGHT, what follows up to the summary's end as GIST, the rest as TEXT.

    `first` is the number of the first block; returns that of the next.

    One block `b t t b'` with its summary `m k k m'`, then text, after a one-token prompt:

        x s s s s c c c c t
        1 . . . . . . . . .
        1 1 . . . . . . . .
        1 1 1 . . . . . . .
        1 1 1 1 . . . . . .
        1 1 1 1 1 . . . . .
        1 1 1 1 1 1 . . . .
        1 1 1 1 1 1 1 . . .
        1 1 1 1 1 1 1 1 . .
        1 1 1 1 1 1 1 1 1 .
        1 . . . . 1 1 1 1 1
    """
    offset, place, number = len(writer), 0, first - 1
    for number, block in enumerate(find_blocks(ids, special), first):
        writer.write(ids[place : block.start], Role.TEXT, trained=True)
        writer.write(
            ids[block.start : block.stop], Role.THOUGHT, trained=True, thought=number, death=offset + block.end
        )
        writer.write(ids[block.stop : block.end], Role.GIST, trained=True, thought=number)
        place = block.end
    writer.write(ids[place:], Role.TEXT, trained=True)
    return number + 1


def memento_text(blocks: Sequence[str], summaries: Sequence[str]) -> str:
    """Blocks and their summaries with the markers around them, as OpenMementos writes a response."""
    if len(blocks) != len(summaries):
        raise UserError(f"memento: {len(blocks)} blocks but {len(summaries)} summaries; each block needs its own")
    return "\n".join(
        f"<|block_start|>{block}<|block_end|>\n<|summary_start|>{summary}<|summary_end|>"
        for block, summary in zip(blocks, summaries, strict=True)
    )
