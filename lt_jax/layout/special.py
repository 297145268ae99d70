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

from tokenizers import AddedToken

from lt_jax.errors import UserError
from lt_jax.layout.encode import core

TRIGGER, OUTPUT, GIST = "<|splitter|>", "<|continue|>", "<|o_{}|>"
MEMENTO = ("<|block_start|>", "<|block_end|>", "<|summary_start|>", "<|summary_end|>")
# Of LightThinker++: the actions, then what the environment says (`memory.syntax`).
_NAMES = ("commit", "expand", "fold", "call", "final_answer", "memory")
MEMORY = tuple(mark for name in _NAMES for mark in (f"<{name}>", f"</{name}>"))


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens a scheme needs; None or () where the method has none.

    Attributes:
        eos: ends a row.
        pad: fills a row up; may be `eos` (padding is never trained nor seen).
        trigger: ends a thought (lightthinker, thought level).
        output: `[o]`, follows the gists; the next thought's first token is predicted from it.
        gists: the gist tokens in order, at least `scheme.gist_tokens` of them; for anllm the anchor.
        memento: (block_start, block_end, summary_start, summary_end).
        memory: pairs of marks of LightThinker++, opening and closing, in the order of `MEMORY`.
        ending: text between a thought and its trigger or anchor, in place of the thought's own trailing newlines;
            None leaves the text as it is. A native trigger such as "\\n\\n" is itself the newlines: "".
    """

    eos: int
    pad: int
    trigger: int | None = None
    output: int | None = None
    gists: tuple[int, ...] = ()
    memento: tuple[int, int, int, int] | None = None
    memory: tuple[int, ...] | None = None
    ending: str | None = "\n"

    def check(self, scheme) -> None:
        """Raises UserError if a token that `scheme` writes is missing."""
        if scheme.has_trigger and self.trigger is None:
            raise UserError("the token table has no trigger token; lightthinker at level 'thought' needs one")
        if scheme.has_output and self.output is None:
            raise UserError("the token table has no output token [o]; lightthinker needs one")
        if len(self.gists) < scheme.gist_tokens:
            wanted = scheme.gist_tokens
            raise UserError(f"the token table has {len(self.gists)} gist tokens; scheme.n_gist is {wanted}")
        if scheme.method == "memento" and self.memento is None:
            raise UserError("the token table has no block and summary markers; memento needs the four of them")
        if scheme.method == "memory" and self.memory is None:
            raise UserError(f"the token table has no marks of a memory; method 'memory' needs {len(MEMORY)} of them")

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


@dataclasses.dataclass(frozen=True)
class Table:
    """A token table and what its new tokens stand for.

    Attributes:
        special: the ids.
        new: (id, description) of every token that was added, in order of id.
        pieces: for each of them the ids of its description, all below the first new id: the new row starts as the
            mean of these rows. Use these, not the description tokenised anew (see above).
    """

    special: SpecialTokens
    new: tuple[tuple[int, str], ...] = ()
    pieces: tuple[tuple[int, ...], ...] = ()


def default_table(
    tokenizer, scheme, eos: str, pad: str | None = None, trigger: str | None = None, add: bool = True,
    memory: Sequence[str] = MEMORY,
) -> Table:  # fmt: skip
    """The clean table: only what `scheme` needs, added to `tokenizer` in place where it is not yet there.

    Args:
        tokenizer: a `tokenizers.Tokenizer` or `transformers` fast tokenizer.
        scheme: a `Scheme`; its method, level and gists decide which tokens there are.
        eos, pad: texts of existing tokens, which `tokenizer` gets as its own, see `name_ends`; `pad` is `eos` if None.
        trigger: a native token to end thoughts with, such as "\\n\\n"; None adds `<|splitter|>`. A native trigger takes
            the place of a thought's trailing newlines (`SpecialTokens.ending` is "").
        add: False looks the tokens up only, for a checkpoint that should have them.
        memory: the marks of method "memory", in the order of `MEMORY`.

    Raises:
        UserError: `eos`, `pad` or `trigger` is not one token, or a token is missing and `add` is False.
    """
    wanted: list[tuple[str, str]] = []
    if scheme.has_trigger and trigger is None:
        wanted.append((TRIGGER, "\n\n"))
    if scheme.has_output:
        wanted.append((OUTPUT, "continue to output according to previous content"))
    if scheme.has_gists:
        wanted += [(GIST.format(i), f"compress output {i}") for i in range(scheme.gist_tokens)]
    if scheme.method == "memento":
        wanted += [(text, text[2:-2].replace("_", " ")) for text in MEMENTO]
    if scheme.method == "memory":
        described = lambda text, place: ("end " if place % 2 else "") + text.strip("</|>").replace("_", " ")
        wanted += [(text, described(text, place)) for place, text in enumerate(memory)]
    eos_id = one_token(tokenizer, eos, "eos")
    pad_id = eos_id if pad is None else one_token(tokenizer, pad, "pad")
    native = None if trigger is None or not scheme.has_trigger else one_token(tokenizer, trigger, "trigger")
    ids, new, pieces = _register(tokenizer, wanted, add)
    special = SpecialTokens(
        eos=eos_id,
        pad=pad_id,
        trigger=ids.get(TRIGGER, native),
        output=ids.get(OUTPUT),
        gists=tuple(ids[GIST.format(i)] for i in range(scheme.gist_tokens)),
        memento=tuple(ids[text] for text in MEMENTO) if scheme.method == "memento" else None,
        memory=tuple(ids[text] for text in memory) if scheme.method == "memory" else None,
        ending="\n" if native is None else "",
    )
    name_ends(tokenizer, eos_id, None if pad is None else pad_id)
    return Table(special, new, pieces)


# family: (tokens before any is added, gist tokens, end of turn)
REFERENCE = {"qwen": (151_665, 9, "<|im_end|>"), "llama": (128_256, 7, "<|eot_id|>")}
_REFERENCE_ORDER = (
    (TRIGGER, "\n\n"),
    (OUTPUT, "continue to output according to previous content"),
    ("<|recover|>", "recover the token according to previous content"),
    ("<|begin_of_thought|>", "begin of thought"),
    ("<|end_of_thought|>", "end of thought"),
    ("<|begin_of_solution|>", "begin of solution"),
    ("<|end_of_solution|>", "end of solution"),
    ("\n\n", "\n\n"),
)


def reference_table(tokenizer, family: str, n_gist: int | None = None, add: bool = True) -> Table:
    """The table of the released checkpoints: the same tokens in the same order, so the same ids.

    Qwen2.5: trigger 151665, [o] 151666, "\\n\\n" 151672, gists 151673..151681. Llama-3.1: trigger 128256, [o] 128257,
    "\\n\\n" 128263, gists 128264..128270. Needed because those checkpoints come without their tokenizer.

    Args:
        tokenizer: the base model's tokenizer, changed in place: after this every empty line becomes the new token.
        family: "qwen" or "llama".
        n_gist: None means the release's 9 or 7 (AnLLM 1).
        add: False looks the tokens up only.

    Raises:
        UserError: the tokenizer is another one, or the ids come out otherwise.
    """
    if family not in REFERENCE:
        raise UserError(f"reference table {family!r}: it must be one of {', '.join(REFERENCE)}")
    base, released, eos = REFERENCE[family]
    n_gist = released if n_gist is None else n_gist
    wanted = [*_REFERENCE_ORDER, *((GIST.format(i), f"compress output {i}") for i in range(n_gist))]
    eos_id = one_token(tokenizer, eos, "eos")
    missing = [text for text, _ in wanted if core(tokenizer).token_to_id(text) is None]
    before = core(tokenizer).get_vocab_size() - (len(wanted) - len(missing))
    if before != base:
        raise UserError(f"the tokenizer has {before:,} tokens; the reference table {family!r} needs one with {base:,}")
    ids, new, pieces = _register(tokenizer, wanted, add)
    if list(ids.values()) != list(range(base, base + len(wanted))):
        raise UserError(f"the tokenizer has some of the reference's tokens at other ids than {base:,} onwards")
    gists = tuple(ids[GIST.format(i)] for i in range(n_gist))
    name_ends(tokenizer, eos_id)
    return Table(SpecialTokens(eos_id, eos_id, ids[TRIGGER], ids[OUTPUT], gists), new, pieces)


def _register(tokenizer, wanted, add):
    """Looks (text, description) tokens up and adds the missing; describes them before any is added."""
    inner = core(tokenizer)
    missing = [(text, description) for text, description in wanted if inner.token_to_id(text) is None]
    if missing and not add:
        raise UserError(
            f"the tokenizer has no token {missing[0][0]!r} (and {len(missing) - 1} more are missing); "
            "it is not the tokenizer of a model trained with this scheme"
        )
    pieces = tuple(tuple(inner.encode(description, add_special_tokens=False).ids) for _, description in missing)
    for text, _ in missing:
        token = AddedToken(text, special=True, normalized=False)
        tokenizer.add_special_tokens([token]) if inner is tokenizer else tokenizer.add_tokens([token])
    inner = core(tokenizer)
    ids = {text: inner.token_to_id(text) for text, _ in wanted}
    return ids, tuple((ids[text], description) for text, description in missing), pieces


def name_ends(tokenizer, eos: int, pad: int | None = None) -> None:
    """Makes `eos` and `pad` (None leaves it) the `eos_token` and `pad_token` of a `transformers` tokenizer.

    Chat templates and exports then name the tokens that rows are really ended and filled up with. An ordinary token of
    the vocabulary, such as ".", is left unnamed: when transformers opens the export, it would make of every named token
    one that is cut out of the text first. Those that read a folder find its id in generation_config.json.
    """
    if core(tokenizer) is tokenizer:
        return
    added = tokenizer.added_tokens_decoder
    for name, token in (("eos_token", eos), ("pad_token", pad)):
        if token in added and getattr(tokenizer, f"{name}_id") != token:
            setattr(tokenizer, name, str(added[token]))


def one_token(tokenizer, text: str, name: str) -> int:
    """The id of `text`. UserError, calling it `name`, if it is not one token of `tokenizer`."""
    inner = core(tokenizer)
    known = inner.token_to_id(text)
    ids = [known] if known is not None else inner.encode(text, add_special_tokens=False).ids
    if len(ids) != 1:
        raise UserError(f"{name} {text!r} is {len(ids)} tokens of this tokenizer; it must be one")
    return ids[0]
