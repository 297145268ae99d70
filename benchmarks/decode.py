"""Decoding speed: tokens/s of the engine beside `transformers` generate(), and of LightThinker beside vanilla.

    python benchmarks/decode.py --against=transformers [--quick] [--real=FOLDER] [--out=results/decode.json]

Both sides run in this process, compute in float32 with the same number of threads, and take turns; each is warmed up
first, and its fastest run counts. Everything between prompt and tokens is inside the timed region. No side may stop
early: there is no EOS. Our engine keeps the real model's weights in the file's bfloat16 (and multiplies in float32, so
exactly what the other side computes from the same weights in float32). Shares are of limits measured in the same run:

    share of bandwidth (batch 1)  = bytes of weights read per token x tokens/s / bytes/s of reading memory
    share of matmul (batch > 1)   = 2 x weights x tokens/s / FLOP/s of a large float32 product

A small model's weights fit the processor's cache, so its share of the bandwidth can pass 1.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--against", choices=("transformers", "nothing"), default="transformers")
parser.add_argument("--real", type=Path, default=Path.home() / ".cache/lt_jax/qwen2.5-coder-0.5b-instruct")
parser.add_argument("--parts", default="small,real,thoughts", help="which of these, by commas")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--quick", action="store_true", help="fewer batch sizes and tokens, one run each")
parser.add_argument("--out", type=Path, default=Path("results/decode.json"))
OPTIONS = parser.parse_args()
# Before JAX and torch count the processors.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: OPTIONS.threads])
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from machine import matmul_rate, provenance, read_bandwidth, table, turns, write  # noqa: E402
from small import SMALL  # noqa: E402

from lt_jax.decode import DecodeConfig, Engine, Request  # noqa: E402
from lt_jax.layout.scheme import Scheme  # noqa: E402
from lt_jax.layout.special import SpecialTokens  # noqa: E402
from lt_jax.models import params as parameters  # noqa: E402
from lt_jax.models.huggingface import load  # noqa: E402

PROMPT = 64


def prompts(vocab: int, batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab - 64, (batch, PROMPT))


class Ours:
    """`batch` rows of `new` generated tokens by the engine, as a call; `peak` is the most keys a row held."""

    def __init__(self, params, model, batch: int, new: int, scheme=None, **options):
        scheme = scheme or Scheme(method="vanilla")
        gists = tuple(range(model.vocab_size - 20, model.vocab_size - 20 + scheme.gist_tokens))
        self.special = SpecialTokens(-1, 0, trigger=model.vocab_size - 1, output=model.vocab_size - 2, gists=gists)
        config = DecodeConfig(rows=batch, capacity=PROMPT + new, **options)
        self.engine = Engine(params, model, scheme, self.special, config)
        self.asked = [Request(prompt, new) for prompt in prompts(model.vocab_size, batch)]
        self.new, self.peak = new, 0

    def __call__(self):
        self.engine.forget()  # each turn reads its prompts, as the other side does
        done = self.engine.complete(self.asked)
        for c in done:
            generated = np.sum(~c.forced | (c.tokens == self.special.trigger))
            assert generated >= self.new and c.finish == "length", (generated, c.finish)
        self.peak = max(int(c.held.max()) for c in done)


def theirs(network, batch: int, new: int):
    """The same by `transformers`, as a call."""
    ids = torch.as_tensor(prompts(network.config.vocab_size, batch))
    mask = torch.ones_like(ids)
    network.generation_config.eos_token_id = None
    options = dict(do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0)

    def run():
        with torch.inference_mode():
            out = network.generate(ids, attention_mask=mask, **options)
        assert out.shape[1] == PROMPT + new, out.shape

    return run


def beside(where: str, params, model, network, batches, new: int, limits: dict) -> list[dict]:
    """Vanilla decoding beside the other side, one line per batch size."""
    weights = parameters.count(model) - (0 if model.tie_embeddings else model.vocab_size * model.hidden)
    each = params["layers"]["q"]["w"].dtype.itemsize
    rows = []
    for batch in batches:
        forms = {"ours": Ours(params, model, batch, new)}
        if network is not None:
            forms["transformers"] = theirs(network, batch, new)
        row = dict(what=where, batch=batch, new=new)
        row |= {name: batch * new / seconds for name, seconds in turns(forms, repeats()).items()}
        if network is not None:
            row["ratio"] = row["ours"] / row["transformers"]
        if batch == 1:
            row["share of bandwidth"] = each * weights * row["ours"] / limits["read_bytes_per_s"]
        else:
            row["share of matmul"] = 2 * weights * row["ours"] / limits["matmul_flops_per_s"]
        rows.append(row)
        print(table([row]), flush=True)
        del forms
        gc.collect()
    return rows


def thoughts(params, model) -> list[dict]:
    """LightThinker (40-token thoughts, 9 gists) beside vanilla at equal generated tokens."""
    rows = []
    for new, batch in ((512, 1), (512, 8)) if OPTIONS.quick else ((512, 1), (512, 8), (4096, 1), (4096, 8)):
        forms = {"vanilla": Ours(params, model, batch, new)}
        forms["lightthinker"] = Ours(params, model, batch, new, Scheme(), max_thought=40)
        row = dict(what="LightThinker / vanilla", batch=batch, new=new)
        row |= {name: batch * new / seconds for name, seconds in turns(forms, repeats()).items()}
        row["ratio"] = row["lightthinker"] / row["vanilla"]
        rows.append(row | dict(peak=forms["lightthinker"].peak, peak_vanilla=forms["vanilla"].peak))
        print(table(rows[-1:]), flush=True)
    return rows


def repeats() -> int:
    return 1 if OPTIONS.quick else OPTIONS.repeats


def small_network():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=SMALL.vocab_size,
        hidden_size=SMALL.hidden,
        intermediate_size=SMALL.intermediate,
        num_hidden_layers=SMALL.layers,
        num_attention_heads=SMALL.heads,
        num_key_value_heads=SMALL.kv_heads,
        head_dim=SMALL.head_dim,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    return LlamaForCausalLM(config).eval()


def real_network():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(OPTIONS.real, dtype=torch.float32).eval()


def main():
    torch.set_num_threads(OPTIONS.threads)
    parts, rows, both = OPTIONS.parts.split(","), [], OPTIONS.against == "transformers"
    result = provenance(OPTIONS.threads, ("jax", "jaxlib", "torch", "transformers", "numpy"))
    limits = dict(read_bytes_per_s=read_bandwidth(OPTIONS.threads), matmul_flops_per_s=matmul_rate())
    print("reads {:.1f} GB/s, multiplies {:.1f} GFLOP/s".format(*(value / 1e9 for value in limits.values())))
    small = parameters.init(jax.random.key(0), SMALL)
    if "small" in parts:
        batches, new = ((1, 32), 64) if OPTIONS.quick else ((1, 8, 32, 64), 256)
        rows += beside("small", small, SMALL, small_network() if both else None, batches, new, limits)
    if "thoughts" in parts:
        rows += thoughts(small, SMALL)
    if "real" in parts and (OPTIONS.real / "model.safetensors").exists():
        params, model = load(OPTIONS.real)
        network = real_network() if both else None
        rows += beside(OPTIONS.real.name, params, model, network, (1, 8), 16 if OPTIONS.quick else 64, limits)
    elif "real" in parts:
        print(f"no checkpoint in {OPTIONS.real}: the real model is left out", file=sys.stderr)
    print(table(rows))
    write(OPTIONS.out, result | dict(limits=limits, unit="tokens/s", rows=rows))


if __name__ == "__main__":
    main()
