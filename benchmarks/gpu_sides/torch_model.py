"""The sides of `transformers` in the sections `sft` and `decode`: the same decoder, random, bfloat16, with SDPA."""

from __future__ import annotations

import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.gpu_sides.side import Task, given, milliseconds, seconds
from benchmarks.gpu_sides.torch_side import DEVICE, begin, wait


def network(task: Task) -> Qwen2ForCausalLM:
    """The decoder on the device."""
    shape = task.sizes.model
    config = Qwen2Config(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=32768, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        made = Qwen2ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return made


def train(task: Task) -> None:
    """Steps of plain causal rows; weights and moments in bfloat16, which is less work than our float32 ones."""
    net = network(task).train()
    adamw = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=DEVICE == "cuda")
    for rows, length, remat in task.sizes.train:
        again = remat != "none"
        net.gradient_checkpointing_enable() if again else net.gradient_checkpointing_disable()
        tokens = torch.randint(0, task.sizes.model.vocab, (rows, length), device=DEVICE)

        def step(tokens=tokens) -> None:
            net(input_ids=tokens, labels=tokens).loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad(set_to_none=True)

        def measure(step=step, tokens=tokens) -> dict:
            each = milliseconds(step, wait, calls=1, rounds=4)
            return {"tokens/s": tokens.numel() / each * 1e3}

        form = f"transformers, {'checkpointing' if again else 'nothing computed again'}"
        task.attempt(f"{rows} x {length:,}, causal", form, measure)


def decode(task: Task) -> None:
    """Greedy decoding by generate()."""
    net, size = network(task).eval(), task.sizes
    net.generation_config.eos_token_id = None
    new = size.peer_new
    for rows in size.rows:
        ids = torch.randint(0, size.model.vocab - 64, (rows, size.prompt), device=DEVICE)
        how = dict(do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0)

        def run(ids=ids, how=how) -> None:
            with torch.inference_mode():
                out = net.generate(ids, attention_mask=torch.ones_like(ids), **how)
            wait()
            assert out.shape[1] == size.prompt + new, out.shape

        def measure(run=run, rows=rows) -> dict:
            start = time.perf_counter()
            run()
            first = time.perf_counter() - start
            return {"rows": rows, "tokens/s": rows * new / seconds(run), "first call s": first}

        task.attempt(f"{rows} rows, {size.prompt} + {new}", "transformers", measure)


def main() -> None:
    task = given()
    begin(task)
    train(task) if task.section == "sft" else decode(task)


if __name__ == "__main__":
    main()
