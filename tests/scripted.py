"""Contenders that recite worked solutions instead of running a model: for the table, the report and the command lines."""

from __future__ import annotations

import dataclasses

import numpy as np

from lt_jax.data.tasks import Problems
from lt_jax.evaluation.run import Contender
from lt_jax.evaluation.suites import embedded
from lt_jax.evaluation.trace import matrix, retrace
from lt_jax.layout.closing import closing
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens

FIRST = 300  # ids of special tokens; bytes below
SPECIAL = SpecialTokens(eos=FIRST, pad=FIRST, trigger=FIRST + 1, output=FIRST + 2,
                        gists=tuple(range(FIRST + 3, FIRST + 12)))  # fmt: skip
NAMES = {FIRST: "<|end|>", FIRST + 1: "<|splitter|>", FIRST + 2: "<|continue|>",
         **{FIRST + 3 + i: f"<|o_{i}|>" for i in range(9)}}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Done:
    id: int
    prompt_length: int
    tokens: np.ndarray
    forced: np.ndarray
    visible: np.ndarray
    held: np.ndarray
    finish: str
    compressions: int
    seconds: float


def count(prompt, tokens, forced, rule, gist_rule):
    """visible and held as an engine that honours the layout counts them: a forced run is one pass."""
    row = retrace([0] * prompt, tokens, forced, rule, SPECIAL.eos)
    index, held, i = np.arange(len(row)), [], 0
    while i < len(tokens):
        j = i + 1
        while j < len(tokens) and forced[j]:
            j += 1
        held += [int(((index < prompt + i) & (row.death > prompt + i)).sum()) + j - i] * (j - i)
        i = j
    return matrix(row, gist_rule)[prompt:].sum(1), np.array(held)


def encode(text: str) -> list[int]:
    return list(text.encode())


def decode(ids) -> str:
    return bytes(i for i in ids if i < 256).decode(errors="replace")


def pieces(ids) -> list[str]:
    return [NAMES.get(i) or chr(i) for i in ids]


def contender(name, scheme, size, *, wrong_every=0, encode=encode, decode=decode, pieces=pieces, **suite):
    """One that writes the worked solution of each embedded problem, with a wrong answer every so often."""
    traces = Problems(size, held_out=True, **suite)
    rule = closing(scheme, SPECIAL)

    def complete(prompts):
        for i, prompt in enumerate(prompts):
            tokens, forced = [], []
            for thought in traces[i].thoughts:
                if wrong_every and i % wrong_every == wrong_every - 1:
                    thought = thought.replace("boxed{", "boxed{1")
                written = encode(thought + "\n")
                tokens += written
                forced += [False] * len(written)
                if rule is not None:
                    tokens += rule.tokens.tolist()
                    forced += [False] + [True] * (len(rule) - 1)
            tokens.append(SPECIAL.eos)
            forced.append(False)
            visible, held = count(len(prompt), tokens, forced, rule, scheme.gist_rule)
            done = 0 if rule is None else len(traces[i].thoughts)
            yield Done(i, len(prompt), np.array(tokens), np.array(forced, bool), visible, held, "eos", done, 0.5)

    return Contender(name, "scripted", scheme, SPECIAL, complete, lambda problem: encode(problem.question), decode, pieces)


def three(size=24, **suite):
    """(contenders, suite): vanilla, LightThinker, AnLLM reciting the same problems."""
    options = dict(steps=(4, 6), **suite)
    return [
        contender("vanilla", Scheme("vanilla"), size, wrong_every=12, **options),
        contender("LightThinker", Scheme(n_gist=3), size, wrong_every=10, **options),
        contender("AnLLM", Scheme("anllm"), size, wrong_every=5, **options),
    ], embedded(size, **options)
