"""One description of a compression method, read by the training layout and by the decode controller alike."""

from __future__ import annotations

import dataclasses

from lt_jax.errors import UserError
from lt_jax.lifetimes import GIST_RULES

METHODS = ("vanilla", "lightthinker", "anllm", "memento", "memory")
LEVELS = ("thought", "token")
PROMPTS = (None, "tokens", "sentences")
SEMANTICS = ("rebuild", "lifetimes")


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a method lays out thoughts and gists, and who sees whom (LightThinker, arXiv 2502.15589).

    A field that the method has no use for must be left alone: a value that would be ignored is refused.

    Attributes:
        method: "vanilla" (plain causal), "lightthinker", "anllm" (the anchor is sampled and trained, sees only its own
            thought, and no trigger or output token is written), "memento" (written summaries outlive their blocks) or
            "memory" (LightThinker++: actions of the model say what is visible, see `lt_jax.memory`).
        level: "thought" (a trigger ends a thought) or "token" (every `step` tokens are one; lightthinker only).
        step: tokens of a chunk at token level; 1 at thought level.
        n_gist: gist tokens of a thought. None means the method's own: 9, or 1 for anllm, or 0 without gists; see
            `gist_tokens`.
        see_current: a gist sees its own thought and block only, not the prompt nor earlier gists. None means the
            method's own: True for anllm, else False; see `current_only`.
        gist_rule: how the tokens of one gist block see each other: "causal", "bidirectional" or "diagonal".
        exclude_continue: an output token dies when the next one is written.
        prompt: prompt compression: None, "tokens" (chunks of `prompt_step`) or "sentences".
        prompt_step: tokens of a prompt chunk, with `prompt="tokens"`.
        prefill_compress: prompt chunks already die inside the prompt, at the end of their gists; if False the prompt
            is plainly causal and the chunks die where the output begins.
        save_template: chat template pieces are never compressed and never die.
        instruction: text written, untrained, between the trigger and the gists; dies with the thought.
        semantics: memory only: "rebuild" (the context is rebuilt as text after every action) or "lifetimes" (keys end
            and are fed again, nothing is rebuilt). None means the method's own: "lifetimes" for memory. A model that
            was trained with one cannot be decoded with the other.
    """

    method: str = "lightthinker"
    level: str = "thought"
    step: int = 1
    n_gist: int | None = None
    see_current: bool | None = None
    gist_rule: str = "causal"
    exclude_continue: bool = False
    prompt: str | None = None
    prompt_step: int = 0
    prefill_compress: bool = True
    save_template: bool = True
    instruction: str = ""
    semantics: str | None = None

    def __post_init__(self):
        _one_of("method", self.method, METHODS)
        _one_of("level", self.level, LEVELS)
        _one_of("gist_rule", self.gist_rule, GIST_RULES)
        _one_of("prompt", self.prompt, PROMPTS)
        _one_of("semantics", self.semantics, (None, *SEMANTICS))
        _check_counts(self)
        _check_method(self)

    @property
    def gist_tokens(self) -> int:
        """Gist tokens of a thought: `n_gist`, or what its None stands for."""
        return {"lightthinker": 9, "anllm": 1}.get(self.method, 0) if self.n_gist is None else self.n_gist

    @property
    def current_only(self) -> bool:
        """Whether a gist sees its own thought and block only: `see_current`, or what its None stands for."""
        return self.method == "anllm" if self.see_current is None else self.see_current

    @property
    def explicit(self) -> Scheme:
        """The same scheme with the method's own values written out: two that do the same are equal in this form."""
        return dataclasses.replace(
            self, n_gist=self.gist_tokens, see_current=self.current_only, semantics=self.memory_semantics
        )

    @property
    def memory_semantics(self) -> str | None:
        """`semantics`, or what its None stands for; None for all methods but memory."""
        return self.semantics or ("lifetimes" if self.method == "memory" else None)

    @property
    def has_gists(self) -> bool:
        """True for the methods that write gist tokens of the table: lightthinker and anllm."""
        return self.method in ("lightthinker", "anllm")

    @property
    def has_trigger(self) -> bool:
        """True where a trigger token ends a thought: lightthinker at thought level."""
        return self.method == "lightthinker" and self.level == "thought"

    @property
    def has_output(self) -> bool:
        """True where an output token `[o]` follows the gists: lightthinker."""
        return self.method == "lightthinker"


def _one_of(name, value, allowed):
    if value not in allowed:
        raise UserError(f"scheme.{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def _check_counts(scheme):
    counts = {"step": scheme.step, "n_gist": scheme.gist_tokens, "prompt_step": scheme.prompt_step}
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UserError(f"scheme.{name} is {value!r}; it must be a whole number, not negative")
    if scheme.level == "thought" and scheme.step != 1:
        raise UserError(f"scheme.step is {scheme.step}; at level 'thought' it must be 1 (level 'token' has chunks)")
    if scheme.step < 1:
        raise UserError("scheme.step is 0; at level 'token' it must be at least 1")
    if (scheme.prompt == "tokens") != (scheme.prompt_step > 0):
        raise UserError(
            f"scheme.prompt_step is {scheme.prompt_step} with prompt {scheme.prompt!r}; "
            "prompt 'tokens' needs a prompt_step of at least 1, anything else needs 0"
        )


def _check_method(scheme):
    method = scheme.method
    if method != "memory" and scheme.semantics is not None:
        raise UserError(f"scheme.semantics is {scheme.semantics!r}; method {method!r} has none")
    if method == "lightthinker" and scheme.gist_tokens < 1:
        raise UserError("scheme.n_gist is 0; lightthinker needs at least 1 gist token a thought")
    if method == "lightthinker":
        return
    wanted = {
        "level": "thought",
        "n_gist": 1 if method == "anllm" else 0,
        "see_current": method == "anllm",
        "gist_rule": "causal",
        "exclude_continue": False,
        "instruction": "",
    }
    if method != "anllm":
        wanted["prompt"] = None
    given = dataclasses.asdict(scheme) | {"n_gist": scheme.gist_tokens, "see_current": scheme.current_only}
    for name, value in wanted.items():
        if given[name] != value:
            raise UserError(f"scheme.{name} is {given[name]!r}; method {method!r} needs {value!r}")
