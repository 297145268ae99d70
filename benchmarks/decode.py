"""Decoding speed: tokens/s of the engine beside `transformers` generate(), and of LightThinker beside vanilla.

    python benchmarks/decode.py --against=transformers [--quick] [--real=FOLDER] [--threads=2] [--out=results]

Both sides run in this process, in float32, with the same number of threads, one after the other, each warmed up first;
the better of `--repeats` runs counts. Prefill and everything between prompt and tokens is inside the timed region. No
side may stop early: there is no EOS. The machine's read bandwidth and matmul rate are measured in the same run:

    share of bandwidth (batch 1)   = bytes of weights read per token x tokens/s / measured bytes/s of summing an array
    share of matmul    (batch 64)  = 2 x weights x tokens/s / measured FLOP/s of a large float32 matrix product
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

SMALL = dict(vocab_size=2048, hidden=256, intermediate=1024, layers=6, heads=8, kv_heads=2, head_dim=32)
PROMPT = 64


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", choices=("transformers", "nothing"), default="transformers")
    parser.add_argument("--real", type=Path, default=Path.home() / ".cache/lt_jax/qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--parts", default="machine,small,real,thoughts", help="which of these, by commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fewer batch sizes and tokens, one run each")
    parser.add_argument("--out", type=Path, default=Path("results"))
    return parser.parse_args()


OPTIONS = arguments()
os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={OPTIONS.threads}")
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: OPTIONS.threads])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import torch  # noqa: E402

from lt_jax.decode import DecodeConfig, Engine, Request  # noqa: E402
from lt_jax.layout.scheme import Scheme  # noqa: E402
from lt_jax.layout.special import SpecialTokens  # noqa: E402
from lt_jax.models import params as parameters  # noqa: E402
from lt_jax.models.config import DecoderConfig  # noqa: E402


def best(run, repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs, after one that is not counted."""
    run()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def machine() -> dict:
    """Read bandwidth and float32 matmul rate, each the better of XLA's and torch's."""
    n = 64 * 2**20
    array, tensor = jnp.ones(n, jnp.float32), torch.ones(n)
    total = jax.jit(jnp.sum)
    seconds = min(best(lambda: total(array).block_until_ready(), 5), best(lambda: tensor.sum().item(), 5))
    size = 2048
    a, b = jnp.ones((size, size)), torch.ones(size, size)
    product = jax.jit(jnp.matmul)
    rate = min(best(lambda: product(a, a).block_until_ready(), 3), best(lambda: torch.matmul(b, b), 3))
    return dict(read_bytes_per_s=4 * n / seconds, matmul_flops_per_s=2 * size**3 / rate)


def prompts(vocab: int, batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab - 64, (batch, PROMPT))


def engine_seconds(params, model, batch: int, new: int, repeats: int, scheme=None, **options):
    """Seconds for `batch` rows of `new` generated tokens, and the completions."""
    scheme = scheme or Scheme(method="vanilla")
    gists = tuple(range(model.vocab_size - 20, model.vocab_size - 20 + scheme.n_gist))
    special = SpecialTokens(eos=-1, pad=0, trigger=model.vocab_size - 1, output=model.vocab_size - 2, gists=gists)
    config = DecodeConfig(**dict(rows=batch, capacity=PROMPT + new) | options)
    engine = Engine(params, model, scheme, special, config)
    asked = [Request(prompt, new) for prompt in prompts(model.vocab_size, batch)]
    done = []

    def run():
        done[:] = engine.complete(asked)

    seconds = best(run, repeats)
    for c in done:
        assert sum(~c.forced | (c.tokens == special.trigger)) >= new and c.finish == "length", c.finish
    return seconds, done


def torch_seconds(network, batch: int, new: int, repeats: int) -> float:
    ids = torch.as_tensor(prompts(network.config.vocab_size, batch))
    mask = torch.ones_like(ids)
    network.generation_config.eos_token_id = None
    options = dict(do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0)

    def run():
        with torch.inference_mode():
            out = network.generate(ids, attention_mask=mask, **options)
        assert out.shape[1] == PROMPT + new, out.shape

    return best(run, repeats)


def weight_count(model: DecoderConfig) -> int:
    """Weights that every token multiplies: all but a lookup table."""
    total = parameters.count(model)
    return total if model.tie_embeddings else total - model.vocab_size * model.hidden


def beside(params, model, network, batches, new: int, repeats: int, rates: dict, where: str) -> list[dict]:
    rows = []
    for batch in batches:
        ours, _ = engine_seconds(params, model, batch, new, repeats)
        row = dict(model=where, batch=batch, new=new, ours=batch * new / ours)
        if network is not None:
            row["transformers"] = batch * new / torch_seconds(network, batch, new, repeats)
            row["ratio"] = row["ours"] / row["transformers"]
        if rates and batch == 1:
            row["share_of_bandwidth"] = 4 * weight_count(model) * row["ours"] / rates["read_bytes_per_s"]
        if rates and batch > 1:
            row["share_of_matmul"] = 2 * weight_count(model) * row["ours"] / rates["matmul_flops_per_s"]
        rows.append(row)
        print("  ", line(row), flush=True)
        gc.collect()
    return rows


def small_models():
    model = DecoderConfig(**SMALL, model_type="llama", tie_embeddings=True)
    params = parameters.init(jax.random.key(0), model)
    if OPTIONS.against == "nothing":
        return params, model, None
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden,
        intermediate_size=model.intermediate,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    return params, model, LlamaForCausalLM(config).eval()


def real_models():
    from lt_jax.models.huggingface import load

    params, model = load(OPTIONS.real, jnp.float32)
    if OPTIONS.against == "nothing":
        return params, model, None
    from transformers import AutoModelForCausalLM

    return params, model, AutoModelForCausalLM.from_pretrained(OPTIONS.real, dtype=torch.float32).eval()


def thoughts(params, model, repeats: int) -> list[dict]:
    """LightThinker (40-token thoughts, 9 gists) beside vanilla at equal generated tokens."""
    rows = []
    for new, batch in ((512, 1), (512, 8)) if OPTIONS.quick else ((512, 1), (512, 8), (4096, 1), (4096, 8)):
        plain, done = engine_seconds(params, model, batch, new, repeats)
        closed, short = engine_seconds(params, model, batch, new, repeats, Scheme(), max_thought=40)
        peak = lambda completions: int(max(c.held.max() for c in completions))
        rows.append(
            dict(
                model="small, thoughts",
                batch=batch,
                new=new,
                ours=batch * new / closed,
                vanilla=batch * new / plain,
                ratio=plain / closed,
                peak=peak(short),
                peak_vanilla=peak(done),
            )
        )
        print("  ", line(rows[-1]), flush=True)
    return rows


def line(row: dict) -> str:
    show = lambda v: v if isinstance(v, str) else f"{v:,.2f}" if v < 100 and isinstance(v, float) else f"{v:,.0f}"
    return "  ".join(f"{name} {show(value)}" for name, value in row.items())


def table(rows: list[dict]) -> str:
    """One table of every row, columns that a row lacks left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    number = lambda v: f"{v:.2f}" if 0 < v < 100 and v % 1 else f"{v:.0f}"
    show = lambda v: "" if v is None else v if isinstance(v, str) else number(v)
    cells = [names] + [[show(row.get(name)) for name in names] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    pad = lambda cell, i: cell.rjust(widths[i]) if i else cell.ljust(widths[i])
    return "\n".join("  ".join(pad(cell, i) for i, cell in enumerate(row)) for row in cells)


def provenance() -> dict:
    git = lambda *a: subprocess.run(["git", *a], capture_output=True, text=True, check=False).stdout.strip()
    return dict(
        command=" ".join(sys.argv),
        commit=git("rev-parse", "HEAD"),
        uncommitted=bool(git("status", "--porcelain")),
        versions={name: version(name) for name in ("jax", "jaxlib", "torch", "transformers", "numpy")},
        machine=dict(processor=_processor(), cores=OPTIONS.threads, system=platform.platform(), load=os.getloadavg()),
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _processor() -> str:
    names = [row.split(":")[1].strip() for row in open("/proc/cpuinfo") if row.startswith("model name")]
    return names[0] if names else platform.processor()


def main():
    torch.set_num_threads(OPTIONS.threads)
    parts, repeats, rows = OPTIONS.parts.split(","), 1 if OPTIONS.quick else OPTIONS.repeats, []
    result = provenance()
    rates = machine() if "machine" in parts else {}
    if rates:
        read, product = rates["read_bytes_per_s"] / 1e9, rates["matmul_flops_per_s"] / 1e9
        print(f"read {read:.1f} GB/s, matmul {product:.1f} GFLOP/s")
    params, model, network = small_models()
    if "small" in parts:
        batches = (1, 32) if OPTIONS.quick else (1, 8, 32, 64)
        rows += beside(params, model, network, batches, 64 if OPTIONS.quick else 256, repeats, rates, "small")
    if "thoughts" in parts:
        rows += thoughts(params, dataclasses.replace(model, max_positions=8192), 1 if OPTIONS.quick else 2)
    if "real" in parts and (OPTIONS.real / "model.safetensors").exists():
        del params, network
        gc.collect()
        params, model, network = real_models()
        rows += beside(params, model, network, (1, 8), 16 if OPTIONS.quick else 64, repeats, rates, OPTIONS.real.name)
    elif "real" in parts:
        print(f"no checkpoint in {OPTIONS.real}: the real model is left out", file=sys.stderr)
    print(table(rows))
    OPTIONS.out.mkdir(exist_ok=True)
    path = OPTIONS.out / ("decode_quick.json" if OPTIONS.quick else "decode.json")
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(result | dict(rates=rates, rows=rows), indent=1) + "\n")
    scratch.rename(path)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
