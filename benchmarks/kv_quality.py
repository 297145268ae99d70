"""What a KV budget costs a real model: worked problems read under every policy and budget.

    python benchmarks/kv_quality.py [--real=FOLDER] [--documents=6] [--budgets=128,256,512] [--out=FILE]

A document is a price list and then worked problems that need prices from it, about 1,100 tokens of plain text. It is
read through the engine's cache in pieces, so evictions happen every `--buffer` tokens as they would in decoding; then
one masked forward under the recorded deaths gives the log-probs. Counted are the tokens of the last two thirds of the
solutions (the first third teaches the format):

    nll        mean negative log-likelihood of solution tokens, nats
    prices     share of price tokens that are the model's first choice: each must be looked up in the list
    answers    the same of the final answers: each is the sum of two prices that stand beside it

Teacher-forced: the model is given the right solution so far, so one slip does not spoil the rest of a document.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--real", type=Path, default=Path.home() / ".cache/lt_jax/qwen2.5-coder-0.5b-instruct")
parser.add_argument("--documents", type=int, default=6)
parser.add_argument("--problems", type=int, default=24, help="worked problems in a document")
parser.add_argument("--budgets", default="128,256,512")
parser.add_argument("--buffer", type=int, default=64)
parser.add_argument("--policies", default="rkv,snapkv,h2o,tova,keydiff,knorm,sepllm,streaming,random")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--out", type=Path, default=Path("results/kv_quality.json"))
parser.add_argument("--picture", type=Path, default=Path("docs/kv_quality.svg"))
OPTIONS = parser.parse_args()
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: OPTIONS.threads])
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from machine import provenance, table, write  # noqa: E402

from lt_jax.decode import DecodeConfig, Request  # noqa: E402
from lt_jax.evaluation.budgets import budget_curves  # noqa: E402
from lt_jax.evaluation.results import write_whole  # noqa: E402
from lt_jax.lifetimes import NEVER, Lifetimes  # noqa: E402
from lt_jax.model import Model, load  # noqa: E402
from lt_jax.models import decoder  # noqa: E402

GOODS = (
    "apple lamp chair book shirt knife clock plate brush towel candle basket mirror hammer pencil bottle carpet ladder "
    "guitar blanket"
).split()


def document(seed: int) -> list[tuple[str, str]]:
    """Pieces of text with what they count as: "" for what is given, "solution", "price" or "answer"."""
    rng = np.random.default_rng(seed)
    price = {name: int(rng.integers(11, 99)) for name in rng.permutation(GOODS)}
    out = [("Price list\n" + "".join(f"{name}: {cost}\n" for name, cost in price.items()), "")]
    taught = OPTIONS.problems // 3
    for number in range(OPTIONS.problems):
        a, b = rng.choice(GOODS, 2, replace=False)
        kind = (lambda x: x) if number >= taught else lambda x: ""
        out += [(f"\nProblem {number + 1}. What do one {a} and one {b} cost together?\nSolution: the {a} costs", ""),
                (f" {price[a]}", kind("price")), (f" and the {b} costs", kind("solution")),
                (f" {price[b]}", kind("price")), (f", so together {price[a]} + {price[b]} =", kind("solution")),
                (f" {price[a] + price[b]}", kind("answer")), (".\n", "")]  # fmt: skip
    return out


def tokens(writer: Model, pieces) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Ids [S], and the indices of the tokens of each kind. Digits and signs are tokens of their own in Qwen's
    vocabulary, so cutting the text before them changes nothing."""
    ids, at = [], {"solution": [], "price": [], "answer": []}
    for text, kind in pieces:
        new = writer.tokenize(text)
        if kind:
            at["solution"] += range(len(ids), len(ids) + len(new))
        if kind in ("price", "answer"):  # the space before a number is no choice
            own = [i for i, token in enumerate(new) if writer.tokenizer.decode([token]).strip()]
            at[kind] += [len(ids) + i for i in own]
        ids += new
    return np.asarray(ids, np.int32), {kind: np.asarray(places) for kind, places in at.items()}


@jax.jit
def read(params, ids, death):
    """Log-prob of each token given those before, and whether it is the first choice: [S - 1] each."""
    hidden = decoder.forward(params, MODEL, ids[None], None, Lifetimes(death))
    logits = decoder.logits(params, MODEL, hidden)[0, :-1]
    own = jnp.take_along_axis(logits, ids[1:, None], -1)[:, 0]
    return own - jax.nn.logsumexp(logits, -1), logits.argmax(-1) == ids[1:]


def measure(writer: Model, documents, eviction, length: int) -> dict:
    """The three figures under an eviction, or under full attention (None)."""
    shape = 1, MODEL.layers, MODEL.kv_heads, length
    engine = None
    if eviction is not None:
        config = DecodeConfig(rows=1, eviction=eviction, horizon=length + 2)
        engine = writer.engine(config)
    sums = {"solution": [], "price": [], "answer": []}
    for ids, at in documents:
        death = np.full(shape, NEVER, np.int32)
        if engine is not None:
            (death[0, :, :, : len(ids)],) = engine.read([Request(ids)])
        logp, first = map(np.asarray, read(writer.params, np.pad(ids, (0, length - len(ids))), death))
        for kind, places in at.items():
            sums[kind] += (-logp if kind == "solution" else first)[places - 1].tolist()
    return {"nll": np.mean(sums["solution"]), "prices %": 100 * np.mean(sums["price"]),
            "answers %": 100 * np.mean(sums["answer"])}  # fmt: skip


def main() -> None:
    budgets = [int(n) for n in OPTIONS.budgets.split(",")]
    documents = [tokens(WRITER, document(seed)) for seed in range(OPTIONS.documents)]
    length = max(len(ids) for ids, _ in documents)
    counted = {kind: sum(len(at[kind]) for _, at in documents) for kind in ("solution", "price", "answer")}
    print(f"{len(documents)} documents of up to {length} tokens; counted tokens: {counted}", flush=True)
    rows = [dict(policy="full", budget=length, **measure(WRITER, documents, None, length))]
    print(table(rows), flush=True)
    for policy in OPTIONS.policies.split(","):
        for budget in budgets:
            eviction = WRITER.eviction(policy=policy, budget=budget, buffer=OPTIONS.buffer)
            found = measure(WRITER, documents, eviction, length)
            rows.append(dict(policy=policy, budget=budget, **found))
            print(table(rows[-1:]), flush=True)
    print(table(rows))
    options = {name: str(value) for name, value in vars(OPTIONS).items() if name not in ("out", "picture", "real")}
    write(OPTIONS.out, provenance(OPTIONS.threads, ("jax", "jaxlib"))
          | dict(options=options, model=OPTIONS.real.name, length=length, counted=counted, lines=rows))  # fmt: skip
    write_whole(OPTIONS.picture, budget_curves(rows, "nll", "negative log-likelihood of solutions, nats"))


if __name__ == "__main__":
    WRITER = load(OPTIONS.real, "vanilla")
    MODEL = WRITER.config
    main()
