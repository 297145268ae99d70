"""A whole training step of the small model beside torch: forward, loss, backward, clip, AdamW.

    python benchmarks/train_step.py [--rows=1] [--length=4096] [--thought=40] [--rounds=5] [--threads=2] [--out=results]

One row of LightThinker layout (thoughts of 40 tokens, 9 gists, `[o]`), float32, the same weights and the same tokens on
all sides; torch runs `F.scaled_dot_product_attention` with the dense additive mask of the same lifetimes, and plain
causal. All sides take turns, once a round, so that a busy machine slows them alike; the fastest round of each counts.
The losses of the first step are compared: all sides compute the same thing. The mask is made outside the timed region.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--thought", type=int, default=40, help="tokens of a thought")
    parser.add_argument("--model", choices=("small", "demo"), default="small", help="hidden 256 x 6, or 128 x 4")
    parser.add_argument("--remat", choices=("none", "dots", "layer"), default="none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results"))
    return parser.parse_args()


OPTIONS = arguments()
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: OPTIONS.threads])
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from machine import provenance, write  # noqa: E402

from lt_jax import native  # noqa: E402
from lt_jax.layout.build import build_row  # noqa: E402
from lt_jax.layout.packing import pack_rows, stack  # noqa: E402
from lt_jax.layout.scheme import Scheme  # noqa: E402
from lt_jax.layout.special import SpecialTokens  # noqa: E402
from lt_jax.lifetimes import dense_mask  # noqa: E402
from lt_jax.models import params as parameters  # noqa: E402
from lt_jax.models import rope  # noqa: E402
from lt_jax.models.config import DecoderConfig  # noqa: E402
from lt_jax.training import mesh as meshes  # noqa: E402
from lt_jax.training import optimizer, step  # noqa: E402
from lt_jax.training import state as states  # noqa: E402
from lt_jax.training.config import OptimizerConfig, TrainConfig  # noqa: E402

MODELS = {
    "small": DecoderConfig(vocab_size=2048, hidden=256, intermediate=704, layers=6, heads=8, kv_heads=2, head_dim=32),
    "demo": DecoderConfig(vocab_size=384, hidden=128, intermediate=384, layers=4, heads=4, kv_heads=2, head_dim=32),
}
OPTIM = OptimizerConfig(learning_rate=1e-3, warmup=0.0, weight_decay=0.1)


def batch(model: DecoderConfig) -> dict:
    """[rows, length] of one LightThinker document a row: a prompt of 64 tokens, then thoughts to the end."""
    scheme, draw = Scheme(n_gist=9), np.random.default_rng(0)
    special = SpecialTokens(eos=1, pad=0, trigger=2, output=3, gists=tuple(range(4, 13)), ending="")
    ids = lambda n: draw.integers(16, model.vocab_size, n).tolist()
    thoughts = (OPTIONS.length - 65) // (OPTIONS.thought + 10)
    row = lambda: build_row(scheme, special, ids(64), [ids(OPTIONS.thought - 1) for _ in range(thoughts)], None)
    return stack([pack_rows([row()], OPTIONS.length, special.pad) for _ in range(OPTIONS.rows)])


def ours(model: DecoderConfig, params: dict, given: dict):
    """A function that makes one step and returns its loss."""
    config, mesh = TrainConfig(steps=10**6, optim=OPTIM, remat=OPTIONS.remat), meshes.make(TrainConfig().mesh)
    tx = optimizer.make(OPTIM, config.steps)
    state, frozen = states.create(params, model, tx, jax.random.key(0), mesh)
    jitted, held = step.make_step(model, config, tx, mesh, state), [state]
    given = meshes.place_batch(mesh, given)
    compiled = jitted.lower(state, frozen, given).compile()

    def one() -> float:
        held[0], metrics = compiled(held[0], frozen, given)
        jax.block_until_ready(held[0])
        return float(metrics["loss"])

    return one, compiled.memory_analysis().temp_size_in_bytes


class TorchDecoder(torch.nn.Module):
    """The same decoder: parameters of ours by name, weights [in, out]."""

    def __init__(self, model: DecoderConfig, params: dict, positions):
        super().__init__()
        self.model = model
        tensor = lambda x: torch.nn.Parameter(torch.tensor(np.asarray(x)))
        self.embed, self.final_norm = tensor(params["embed"]), tensor(params["final_norm"])
        take = lambda i: {n: tensor((p["w"] if isinstance(p, dict) else p)[i]) for n, p in params["layers"].items()}
        self.layers = torch.nn.ModuleList(torch.nn.ParameterDict(take(i)) for i in range(model.layers))
        self.cos, self.sin = (torch.tensor(np.asarray(x)).transpose(1, 2) for x in rope.table(model, positions))

    def norm(self, x, weight):
        return F.rms_norm(x, x.shape[-1:], weight, self.model.norm_eps)

    def rotate(self, x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1)

    def forward(self, tokens, mask):
        m, x = self.model, self.embed[tokens]
        heads = lambda y, n: y.unflatten(-1, (n, m.head_dim)).transpose(1, 2)
        for layer in self.layers:
            y = self.norm(x, layer["attn_norm"])
            q, k = self.rotate(heads(y @ layer["q"], m.heads)), self.rotate(heads(y @ layer["k"], m.kv_heads))
            v = heads(y @ layer["v"], m.kv_heads)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
            x = x + y.transpose(1, 2).flatten(2) @ layer["o"]
            y = self.norm(x, layer["mlp_norm"])
            x = x + (F.silu(y @ layer["gate"]) * (y @ layer["up"])) @ layer["down"]
        return self.norm(x, self.final_norm) @ self.embed.T


def torchs(model: DecoderConfig, params: dict, given: dict, masked: bool):
    """As `ours`, in torch; with the dense additive mask, or plain causal."""
    network = TorchDecoder(model, params, given["positions"])
    adamw = torch.optim.AdamW(
        network.parameters(), lr=OPTIM.learning_rate, betas=(OPTIM.b1, OPTIM.b2), weight_decay=OPTIM.weight_decay
    )
    tokens, targets = (torch.tensor(given[name]).long() for name in ("tokens", "targets"))
    weights, mask = torch.tensor(given["weights"]), None
    if masked:
        seen = torch.tensor(np.asarray(dense_mask(step.lifetimes(jax.tree.map(jnp.asarray, given), "causal"))))
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)

    def one() -> float:
        logits = network(tokens, mask)
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        loss = (each * weights.flatten()).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), OPTIM.clip)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return loss.item()

    return one


def causal(given: dict) -> dict:
    """The same tokens with keys that live on."""
    return given | {"death": np.full_like(given["death"], 2**30), "since": np.zeros_like(given["since"])}


def rounds(sides: dict, count: int) -> dict[str, list[float]]:
    """Seconds of each side in each round; the sides take turns."""
    seconds = {name: [] for name in sides}
    for _ in range(count):
        for name, one in sides.items():
            start = time.perf_counter()
            one()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def matmul_rate(hidden: int, wide: int, rows: int) -> float:
    """FLOP/s of the model's own widest layer product on this machine, the better of XLA's and torch's."""
    x, w, product, best = jnp.ones((rows, hidden)), jnp.ones((hidden, wide)), jax.jit(jnp.matmul), []
    tx, tw = torch.ones(rows, hidden), torch.ones(hidden, wide)
    for one in (lambda: product(x, w).block_until_ready(), lambda: tx @ tw):
        best.append(min(rounds({"": one}, 20)[""][1:]))
    return 2 * rows * hidden * wide / min(best)


def main() -> None:
    torch.set_num_threads(OPTIONS.threads)
    model = MODELS[OPTIONS.model]
    params, given = parameters.init(jax.random.key(0), model), batch(model)
    result = provenance(OPTIONS.threads, ("jax", "jaxlib", "torch"))
    form = "native" if native.available() else "blocked"  # what attention is by default, with one device
    label = f"lt_jax, {form}"
    own, memory = ours(model, params, given)
    sides = {
        label: own,
        "torch, dense mask": torchs(model, params, given, masked=True),
        "torch, causal": torchs(model, params, given, masked=False),
        "lt_jax, nothing dies": ours(model, params, causal(given))[0],
    }
    losses = {name: one() for name, one in sides.items()}
    assert abs(losses[label] - losses["torch, dense mask"]) < 1e-4, losses
    assert abs(losses["lt_jax, nothing dies"] - losses["torch, causal"]) < 1e-4, losses
    seconds = rounds(sides, OPTIONS.rounds)
    tokens = OPTIONS.rows * OPTIONS.length
    rate = matmul_rate(model.hidden, model.intermediate, tokens)
    flops = 6 * parameters.count(model) * tokens  # of the weights alone: attention is not counted
    best = {name: min(each) for name, each in seconds.items()}
    print(
        f"{OPTIONS.rows} x {OPTIONS.length} tokens, {parameters.count(model):,} parameters, {OPTIONS.threads} threads; "
        f"matmul {rate / 1e9:.0f} GFLOP/s; temporary memory of our step {memory / 2**20:.0f} MiB"
    )
    print(f"{'':22}{'ms':>8}{'tokens/s':>10}{'x ours':>8}{'of matmul':>11}")
    for name, each in best.items():
        share = flops / each / rate
        print(f"{name:22}{each * 1e3:8.0f}{tokens / each:10,.0f}{each / best[label]:8.2f}{share:11.0%}")
    result |= {
        "options": {name: str(value) for name, value in vars(OPTIONS).items() if name != "out"}, "form": form,
        "parameters": parameters.count(model), "matmul_flops_per_s": rate, "temporary_bytes": memory,
        "first_loss": losses, "seconds": seconds, "best": best,
    }  # fmt: skip
    write(OPTIONS.out / f"train_step_{OPTIONS.model}.json", result)


if __name__ == "__main__":
    main()
