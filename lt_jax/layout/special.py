"""The special tokens of a method, and the two tables that name them.

`default_table` is the clean one: it adds only what is needed, takes a native token for the trigger if you like, and
leaves every native token alone. `reference_table` repeats the ids of the released checkpoints
`zjunlp/LightThinker-Qwen` and `-Llama`, whose order of registration also takes over the literal two newlines ("\\n\\n")
as a new token. So under the reference table a text with an empty line in it tokenises differently from the base model:
use it to load those checkpoints, not to train anew.

Each new row of the embedding is to start as the mean of the rows of its description. The reference described
"\\n\\n" and the trigger by "\\n\\n" *after* adding that token, so both started from an untrained row. Here the
descriptions are tokenised before anything is added, in both tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lt_jax.errors import UserError

TRIGGER, OUTPUT, GIST = "<|splitter|>", "<|continue|>", "<|o_{}|>"
MEMENTO = ("<|block_start|>", "<|block_end|>", "<|summary_start|>", "<|summary_end|>")


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens a scheme needs; None or () where the method has none.

    Attributes:
        eos: ends a row.
        pad: fills a row up; may be `eos` (padding is never trained nor seen).
        trigger: ends a thought (lightthinker, thought level).
        output: `[o]`, follows the gists; the next thought's first token is predicted from it.
        gists: the gist tokens in order, at least `scheme.n_gist` of them; for anllm the anchor.
        memento: (block_start, block_end, summary_start, summary_end).
        ending: text between a thought and its trigger or anchor, in place of the thought's own trailing newlines;
            None leaves the text as it is. A native trigger such as "\\n\\n" is itself the newlines: "".
    """

    eos: int
    pad: int
    trigger: int | None = None
    output: int | None = None
    gists: tuple[int, ...] = ()
    memento: tuple[int, int, int, int] | None = None
    ending: str | None = "\n"

    def check(self, scheme) -> None:
        """Raises UserError if a token that `scheme` writes is missing."""
        if scheme.has_trigger and self.trigger is None:
            raise UserError("the token table has no trigger token; lightthinker at level 'thought' needs one")
        if scheme.has_output and self.output is None:
            raise UserError("the token table has no output token [o]; lightthinker needs one")
        if len(self.gists) < scheme.n_gist:
            raise UserError(f"the token table has {len(self.gists)} gist tokens; scheme.n_gist is {scheme.n_gist}")
        if scheme.method == "memento" and self.memento is None:
            raise UserError("the token table has no block and summary markers; memento needs the four of them")

    def to_dict(self) -> dict:
        """Plain values for JSON; `from_dict` reads them back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> SpecialTokens:
        """Reads `to_dict`'s values; raises UserError on a name it does not know."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f"token table: unknown key {unknown[0]!r}")
        return cls(**{name: tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
                      for name, value in values.items()})
