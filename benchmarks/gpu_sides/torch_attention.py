"""Torch's side of the attention section: FlexAttention with keys in our order and in token order, and SDPA.

With keys in our order they are gathered inside of what is timed, as our kernels gather theirs. FlexAttention is
compiled; in a rehearsal on a CPU it is not, and has no backward pass there.
"""

from __future__ import annotations

import contextlib
import functools

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

from benchmarks.deaths import order, thoughts
from benchmarks.gpu_sides.side import Task, given, milliseconds
from benchmarks.gpu_sides.torch_side import DEVICE, begin, wait

BLOCK = 128  # keys of FlexAttention's blocks


class Work:
    """One batch: operands [B, H, S, D], and its deaths."""

    def __init__(self, task: Task, rows: int, length: int):
        size = task.sizes
        heads = (size.heads, size.kv_heads, size.kv_heads, size.heads)
        of = lambda n: torch.randn(rows, n, length, size.head_dim, device=DEVICE, dtype=torch.bfloat16)
        self.q, self.k, self.v = (of(n).requires_grad_() for n in heads[:3])
        self.w, self.rows, self.length = of(heads[3]), rows, length
        death = thoughts(rows, length)
        self.death = torch.tensor(death, device=DEVICE)
        self.order = torch.tensor(order(death, BLOCK), device=DEVICE)
        self.flex = flex_attention if task.rehearse else torch.compile(flex_attention, dynamic=False)

    @property
    def name(self) -> str:
        return f"{self.rows} x {self.length:,}"

    def timed(self, call, forward_only: bool = False) -> dict:
        """Milliseconds of call(q, k, v), and of its three gradients together with it."""

        def forward():
            with torch.no_grad():
                return call(self.q.detach(), self.k.detach(), self.v.detach())

        both = lambda: torch.autograd.grad(call(self.q, self.k, self.v), (self.q, self.k, self.v), self.w)
        found = {"forward ms": milliseconds(forward, wait)}
        return found if forward_only else found | {"both ms": milliseconds(both, wait)}

    def flexed(self, rule, rows: int | None, gather: bool = False) -> dict:
        """FlexAttention under rule(row, head, query, key)."""
        mask = create_block_mask(rule, rows, None, self.length, self.length, device=DEVICE)
        places = self.order[:, None, :, None].expand(self.k.shape)
        sort = (lambda x: torch.gather(x, 2, places)) if gather else (lambda x: x)
        run = lambda q, k, v: self.flex(q, sort(k), sort(v), block_mask=mask, enable_gqa=True)
        return self.timed(run, forward_only=DEVICE == "cpu") | {"empty %": float(mask.sparsity())}

    def sorted(self) -> dict:
        birth, death = self.order, torch.gather(self.death, 1, self.order)
        return self.flexed(lambda b, h, i, j: (i >= birth[b, j]) & (i < death[b, j]), self.rows, gather=True)

    def unsorted(self) -> dict:
        death = self.death
        return self.flexed(lambda b, h, i, j: (i >= j) & (i < death[b, j]), self.rows)

    def causal(self) -> dict:
        return self.flexed(lambda b, h, i, j: i >= j, None)

    def backend(self, which) -> dict:
        """SDPA by the backend named, and no other."""
        named = contextlib.nullcontext() if DEVICE == "cpu" else sdpa_kernel(which)
        with named:
            return self.timed(lambda q, k, v: sdpa(q, k, v, is_causal=True, enable_gqa=True))


def main() -> None:
    task = given()
    begin(task)
    works = [Work(task, *each) for each in task.sizes.attention]
    # What goals are about comes first.
    forms = (
        ("causal", "SDPA flash", lambda work: functools.partial(work.backend, SDPBackend.FLASH_ATTENTION)),
        ("thoughts of 40", "FlexAttention, our order", lambda work: work.sorted),
        ("causal", "SDPA cuDNN", lambda work: functools.partial(work.backend, SDPBackend.CUDNN_ATTENTION)),
        ("thoughts of 40", "FlexAttention", lambda work: work.unsorted),
        ("causal", "FlexAttention", lambda work: work.causal),
    )
    for layout, form, measure in forms:
        for work in works:
            torch.compiler.reset()
            task.attempt(f"{layout}, {work.name}", form, measure(work))


if __name__ == "__main__":
    main()
