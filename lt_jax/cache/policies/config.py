"""How a cache is kept within its budget."""

from __future__ import annotations

import dataclasses

from lt_jax.errors import UserError

POLICIES = ("full", "streaming", "h2o", "tova", "knorm", "keydiff", "snapkv", "rkv", "sepllm", "random")
SHARES = (None, "heads", "layers")
ORDERS = ("birth", "reference")


@dataclasses.dataclass(frozen=True)
class Eviction:
    """A KV budget and the policy that chooses who stays.

    Attributes:
        policy: one of `POLICIES`.
        budget: keys a (row, layer, kv head) keeps at a compaction; a tuple gives each layer its own.
        buffer: tokens between two compactions. A row holds budget + buffer keys at most.
        window: the newest keys, always kept; also the queries that SnapKV and R-KV ask.
        sinks: the first keys of the row, always kept.
        share: None: every layer and kv head chooses for itself. "heads": the heads of a layer keep the same keys.
            "layers": all layers and heads do (what the released Sparse-RL does).
        order: "birth" keeps slots in birth order. "reference" (rkv and snapkv) leaves them in the order of the scores,
            as the R-KV code does; its pooling and its "last" duplicate then follow that order.
        mix: lambda of R-KV, the weight of attention against redundancy.
        kernel: of the max pooling of SnapKV and R-KV, odd.
        threshold: cosine above which R-KV takes two keys for duplicates.
        separators: token ids of separators, separator_room: most of their keys that are kept (SepLLM).
        seed: of the random policy.
    """

    policy: str = "rkv"
    budget: int | tuple[int, ...] = 512
    buffer: int = 128
    window: int = 8
    sinks: int = 0
    share: str | None = None
    order: str = "birth"
    mix: float = 0.1
    kernel: int = 7
    threshold: float = 0.5
    separators: tuple[int, ...] = ()
    separator_room: int = 64
    seed: int = 0

    def __post_init__(self):
        if isinstance(self.budget, list):
            object.__setattr__(self, "budget", tuple(self.budget))
        object.__setattr__(self, "separators", tuple(self.separators))
        budgets = self.budget if isinstance(self.budget, tuple) else (self.budget,)
        if not budgets or not all(isinstance(n, int) and n > 0 for n in budgets):
            raise UserError(f"budget is {self.budget!r}; it must be a number of keys, 1 or more, or one for each layer")
        if self.separator_room < 1:
            raise UserError(f"separator_room is {self.separator_room}; it must be 1 or more")
        if not -1 <= self.threshold <= 1:
            raise UserError(f"threshold is {self.threshold}; a cosine is from -1 to 1")
        if self.order == "reference" and self.policy not in ("rkv", "snapkv"):
            raise UserError(f"order='reference' is what the R-KV code does; {self.policy} needs the order of births")
        if self.buffer < 1:
            raise UserError(f"buffer is {self.buffer}; at least one token must pass between two compactions")
        for name in ("window", "sinks"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it cannot be negative")
        if self.least <= self.window + self.sinks:
            raise UserError(
                f"budget {self.least} leaves no room beside the window ({self.window}) and the sinks ({self.sinks}); "
                f"it must be at least {self.window + self.sinks + 1}"
            )
        if self.policy not in POLICIES:
            raise UserError(f"policy is {self.policy!r}; it is one of {', '.join(POLICIES)}")
        if self.policy in ("snapkv", "rkv") and not self.window:
            raise UserError(f"window is 0; {self.policy} scores keys by the queries of the window")
        if self.policy == "sepllm" and not self.separators:
            raise UserError("sepllm keeps separators, but none are given; the tokenizer may have none of its own")
        if self.share not in SHARES:
            raise UserError(f"share is {self.share!r}; it is None, 'heads' or 'layers'")
        if self.share == "layers" and isinstance(self.budget, tuple):
            raise UserError("share='layers' keeps the same keys in all layers, so it needs one budget for all")
        if self.order not in ORDERS:
            raise UserError(f"order is {self.order!r}; it is one of {', '.join(ORDERS)}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"kernel is {self.kernel}; it must be odd, so that a key is in the middle of its own pool")
        if not 0 <= self.mix <= 1:
            raise UserError(f"mix is {self.mix}; it must be from 0 (redundancy alone) to 1 (attention alone)")

    @property
    def most(self) -> int:
        """The largest budget of a layer."""
        return max(self.budget) if isinstance(self.budget, tuple) else self.budget

    @property
    def least(self) -> int:
        """The smallest budget of a layer."""
        return min(self.budget) if isinstance(self.budget, tuple) else self.budget

    @property
    def asks(self) -> int:
        """How many of the last queries the policy looks at."""
        return {"tova": 1, "snapkv": self.window, "rkv": self.window}.get(self.policy, 0)

    def budgets(self, layers: int) -> tuple[int, ...]:
        """The budget of every layer."""
        if isinstance(self.budget, int):
            return (self.budget,) * layers
        if len(self.budget) != layers:
            raise UserError(f"{len(self.budget)} budgets were given for a model of {layers} layers")
        return self.budget


def pyramid(layers: int, mean: int, beta: float = 20.0, least: int = 1) -> tuple[int, ...]:
    """Budgets that fall linearly from the first layer to the last (PyramidKV), `mean` on average.

    The last layer gets mean / beta, but not less than `least`, and the first 2 mean minus that.

    Raises:
        UserError: `least` is above the mean.

    Example:
        pyramid(5, 100, beta=5)  ->  180, 140, 100, 60, 20
    """
    if least > mean:
        raise UserError(f"a pyramid of {mean} keys on average cannot have {least} in every layer")
    if layers == 1:
        return (mean,)
    last = max(mean / beta, least)
    steps = [2 * mean - last - 2 * (mean - last) * i / (layers - 1) for i in range(layers)]
    return tuple(max(least, round(step)) for step in steps)


def published(policy: str, budget: int | tuple[int, ...], buffer: int = 128, **settings) -> Eviction:
    """A policy with the settings of its paper or release, scaled to the budget where they are shares of it.

    streaming: 4 sinks. h2o: half of the budget is the local window (LightThinker C.2). sepllm: of 1,024 keys 384 first
    ones, 256 of the local window, 64 separators (LightThinker C.2). snapkv and rkv: window 8. The others protect the
    newest key alone. With a budget for each layer the shares are of the smallest.

    Args:
        settings: fields of `Eviction`, in place of those.
    """
    least = min(budget) if isinstance(budget, tuple) else budget
    own = {
        "streaming": dict(sinks=min(4, least // 2), window=1),
        "h2o": dict(window=least // 2),
        "sepllm": dict(sinks=least * 3 // 8, window=least // 4, separator_room=max(1, least // 16)),
        "snapkv": {},
        "rkv": {},
    }.get(policy, dict(window=1))
    return Eviction(policy, budget, buffer, **own | settings)
