"""How the cache of a row is kept within its budget."""

from __future__ import annotations

import dataclasses

from lt_jax.errors import UserError

POLICIES = ("full", "streaming", "h2o", "tova", "knorm", "keydiff", "snapkv", "rkv", "sepllm", "random")
SHARES = (None, "heads", "layers")
ORDERS = ("birth", "reference")


@dataclasses.dataclass(frozen=True)
class Eviction:
    """A KV budget and the policy that chooses which keys stay within it.

    Whenever a row holds budget + buffer keys, all but `budget` of them are evicted. This is called a compaction.

    Attributes:
        policy: one of `POLICIES`.
        budget: how many keys each layer and KV head of a row keeps at a compaction. A tuple gives each layer its own.
        buffer: how many tokens pass between two compactions.
        window: how many of the newest keys are always kept. SnapKV and R-KV also score keys by the attention that the
            queries of these tokens pay to them.
        sinks: how many of the first keys of the row are always kept.
        share: None lets every layer and KV head choose for itself. "heads" makes the heads of a layer keep the same
            keys, and "layers" all layers and heads, as the released Sparse-RL does.
        order: "birth" keeps the slots of a row in the order of birth. "reference" (rkv and snapkv only) leaves them in
            the order of the scores, as the R-KV code does, which changes what its pooling sees and which duplicate of a
            key it takes for the last one.
        mix: the weight of attention against redundancy in R-KV's score (lambda in the paper).
        kernel: the width of the max pooling over scores in SnapKV and R-KV; it is odd.
        threshold: the cosine similarity above which R-KV takes two keys for duplicates.
        separators: the token ids that SepLLM takes for separators.
        separator_room: the most keys of separators that SepLLM keeps.
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
        """How many of the newest queries the policy needs, to see which keys they attend to."""
        return {"tova": 1, "snapkv": self.window, "rkv": self.window}.get(self.policy, 0)

    def budgets(self, layers: int) -> tuple[int, ...]:
        """The budget of every layer."""
        if isinstance(self.budget, int):
            return (self.budget,) * layers
        if len(self.budget) != layers:
            raise UserError(f"{len(self.budget)} budgets were given for a model of {layers} layers")
        return self.budget


def pyramid(layers: int, mean: int, beta: float = 20.0, least: int = 1) -> tuple[int, ...]:
    """A budget for each layer: they fall linearly from the first layer to the last, and average `mean` (PyramidKV).

    The last layer gets mean / beta, but not less than `least`; the first layer gets 2 * mean minus that.

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
    """A policy with the settings of its paper or release. What they give as a share of the budget is scaled to it.

    streaming has 4 sinks. h2o has a window of half the budget, and sepllm, for each 1,024 keys of budget, 384 sinks, a
    window of 256 and room for 64 separators (both as in appendix C.2 of LightThinker). snapkv and rkv have a window of
    8. The other policies always keep the newest key only. If each layer has a budget of its own, shares are taken of
    the smallest one.

    Args:
        settings: fields of `Eviction` that replace those.
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
