"""Contenders that recite worked solutions instead of running a model: for the counter, the table and the report.

A recited completion has the lifetimes of its training row, so it is what an engine must report.
"""

from __future__ import annotations

import numpy as np

from lt_jax.data.suites import embedded
from lt_jax.data.tasks import Problems
from lt_jax.decode import Completion
from lt_jax.evaluation.run import Contender
from lt_jax.layout.build import build_row
from lt_jax.layout.row import Role, Row
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import visible

FIRST = 300  # ids of special tokens; bytes below
SPECIAL = SpecialTokens(
    eos=FIRST, pad=FIRST, trigger=FIRST + 1, output=FIRST + 2, gists=tuple(range(FIRST + 3, FIRST + 12)),
    memento=tuple(range(FIRST + 12, FIRST + 16)),
)  # fmt: skip
NAMES = {FIRST: "<|end|>", FIRST + 1: "<|splitter|>", FIRST + 2: "<|continue|>",
         **{FIRST + 3 + i: f"<|o_{i}|>" for i in range(9)}}  # fmt: skip


def encode(text: str) -> list[int]:
    return list(text.encode())


def decode(ids) -> str:
    return bytes(i for i in ids if i < 256).decode(errors="replace")


def pieces(ids) -> list[str]:
    return [NAMES.get(i) or chr(i) for i in ids]


def matrix(row: Row, gist_rule: str = "causal") -> np.ndarray:
    """Who sees whom: bool [N, N], queries downwards."""
    index = np.arange(len(row))
    return visible(index, row.death, index, row.since, row.gist, row.gist, gist_rule)


def completion(row: Row, scheme: Scheme, number: int = 0) -> Completion:
    """The completion whose training row is `row`: a closing token and what is forced after it are one pass."""
    n, prompt, index = len(row), row.prompt_length, np.arange(len(row))
    forced = np.isin(row.role, (Role.INSTRUCTION, Role.OUTPUT)) | ((row.role == Role.GIST) & ~row.trained)
    held, i = np.zeros(n, np.int32), prompt
    while i < n:
        j = i + 1
        while j < n and forced[j]:
            j += 1
        held[i:j] = int(((index < i) & (row.death > i)).sum()) + j - i
        i = j
    thoughts = sorted(set(row.thought[row.role == Role.GIST].tolist()) - {-1})
    ends = [np.flatnonzero((row.thought == t) & (row.role == Role.GIST)) for t in thoughts]
    closers = [e[0] - 1 if scheme.has_output else e[-1] for e in ends]
    return Completion(
        id=number, prompt=row.tokens[:prompt], tokens=row.tokens[prompt:], forced=forced[prompt:],
        written=~forced[prompt:], logp=np.zeros(n - prompt, np.float32),
        visible=matrix(row, scheme.gist_rule)[prompt:].sum(1),
        held=held[prompt:], is_gist=(row.role == Role.GIST)[prompt:], closings=np.array(closers, np.int64) - prompt,
        death=row.death, since=row.since, block=row.gist, finish="eos" if row.role[-1] == Role.EOS else "length",
        seconds=0.5, gist_rule=scheme.gist_rule,
    )  # fmt: skip


def contender(name, scheme, traces, *, wrong_every=0, encode=encode, decode=decode, pieces=pieces):
    """One that writes the worked solution of each embedded problem, with a wrong answer every so often."""

    def complete(prompts):
        for i, prompt in enumerate(prompts):
            thoughts = traces[i].thoughts
            if wrong_every and i % wrong_every == wrong_every - 1:
                thoughts = [thought.replace("boxed{", "boxed{1") for thought in thoughts]
            segments = [encode(thought + "\n") for thought in thoughts]
            yield completion(build_row(scheme, SPECIAL, prompt, segments, encode), scheme, i)

    ask = lambda problem: encode(problem.question)
    return Contender(name, "recited", scheme, SPECIAL, complete, ask, decode, pieces)


def three(size=24, families=("gcd", "simple_equations"), **codec):
    """(contenders, suite): vanilla, LightThinker, AnLLM reciting the same problems."""
    options = dict(steps=(4, 6), families=families)
    traces = list(Problems(size, held_out=True, **options))
    return [
        contender("vanilla", Scheme("vanilla"), traces, wrong_every=12, **codec),
        contender("LightThinker", Scheme(n_gist=3), traces, wrong_every=10, **codec),
        contender("AnLLM", Scheme("anllm"), traces, wrong_every=5, **codec),
    ], embedded(size, **options)
