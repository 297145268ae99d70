"""Losses of policy gradients over sampled tokens, and the KL to a reference.

With r = pi / pi_old of a token (pi_old the policy before the update, dense, not the sampler), A its response's
advantage, w its weight and k the tokens that are learned from (`mismatch.Correction`), every loss is

    sum over k of  [ -w min(r A, clip(r, 1 - low, 1 + high) A) + kl_weight KL - entropy_weight H ]  divided by:

    grpo     the response's tokens in k, and N responses                      (Shao et al., 2402.03300)
    dr_grpo  a constant length, and N: long responses weigh more              (Liu et al., 2503.20783)
    dapo     all tokens of the batch; clips higher upwards                    (Yu et al., 2503.14476)
    gspo     as grpo; r is the geometric mean over the response               (Zheng et al., 2507.18071)
    rloo     N; not clipped: the gradient of the expected reward itself       (Ahmadian et al., 2402.14740)

What differs: paper and release have `grpo` alone, with 0.2 to both sides and 1e-4 of k3. Theirs is a mean over what one
device sees at a time, here every division is by a number for the whole batch, so that it may be cut into microbatches.
Log-ratios are cut to +-20 before `exp` as in verl, which the release does not: beyond that, where its gradient is 5e8
and more, or NaN, none flows. In `gspo` weights of tokens weigh the response's term by their mean.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lt_jax.errors import UserError
from lt_jax.rl.mismatch import ESTIMATES, Correction, log_ratio
from lt_jax.rl.mismatch_config import is_number

CLIPS = {"grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "rloo": None}
KLS = ("k1", "k3")
KL_BOUND = 10.0  # the release's, of k3


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Which loss.

    Attributes:
        kind: a key of `CLIPS`.
        clip: (low, high), how far r may go below and above 1 until nothing is gained; None is the paper's own.
        kl: the estimate of KL(pi || reference) per token: "k3", cut to 10 as in the release, or "k1". The gradient of
            k1 is 0 on average; it says how far the policy is, and does not hold it.
        kl_weight: 0 needs no reference.
        entropy_weight: of the bonus for entropy.
        length: of dr_grpo, the constant: most tokens of a response, usually.
        count_rejected: whether rejected responses count in what is divided by (N, or dapo's tokens), as in the release;
            otherwise the accepted ones weigh more, the more are rejected.
    """

    kind: str = "grpo"
    clip: tuple[float, float] | None = None
    kl: str = "k3"
    kl_weight: float = 1e-4
    entropy_weight: float = 0.0
    length: int | None = None
    count_rejected: bool = True

    def __post_init__(self):
        if self.kind not in CLIPS:
            raise UserError(f"loss.kind is {self.kind!r}; it is one of {', '.join(CLIPS)}")
        if self.clip is not None:
            object.__setattr__(self, "clip", tuple(self.clip))
            if CLIPS[self.kind] is None:
                raise UserError(f"loss.clip is {self.clip}, but {self.kind} does not clip; leave it out")
            pair = len(self.clip) == 2 and all(map(is_number, self.clip))
            if not (pair and 0 < self.clip[0] <= 1 and self.clip[1] > 0):
                raise UserError(f"loss.clip is {self.clip}; it is (low, high), above 0 and low at most 1")
        if self.kl not in KLS:
            raise UserError(f"loss.kl is {self.kl!r}; it is one of {', '.join(KLS)}")
        for name in ("kl_weight", "entropy_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"loss.{name} is {getattr(self, name)}; it must be a number and must not be negative")
        if (self.kind == "dr_grpo") != (self.length is not None) or not (self.length is None or self.length > 0):
            raise UserError(f"loss.length is {self.length} and loss.kind is {self.kind!r}; dr_grpo needs a length "
                            "above 0, and no other loss has one")  # fmt: skip

    @property
    def bounds(self) -> tuple[float, float] | None:
        """(low, high) of r - 1, or None without clipping."""
        return CLIPS[self.kind] if self.clip is None else self.clip


def denominator(
    config: LossConfig, response: jax.Array, correction: Correction, rows: jax.Array | None = None
) -> jax.Array:
    """What the loss of a whole batch is divided by, float32 scalar; to be made before the batch is cut.

    Args:
        response: [B, S] bool, which tokens were sampled.
        rows: [B] bool, which rows are responses and not padding; None is those with a sampled token. An empty response
            counts only if it is named here.
    """
    counted = jnp.any(response, axis=-1) if rows is None else jnp.asarray(rows, bool)
    if not config.count_rejected:
        counted = counted & correction.accepted
    if config.kind == "dapo":
        return jnp.maximum(jnp.sum(response & correction.kept & counted[:, None]), 1).astype(jnp.float32)
    return jnp.maximum(jnp.sum(counted), 1).astype(jnp.float32) * (config.length or 1)


def policy_loss(
    config: LossConfig,
    logp: jax.Array,
    logp_old: jax.Array,
    advantages: jax.Array,
    response: jax.Array,
    correction: Correction,
    denominator: jax.Array,
    logp_reference: jax.Array | None = None,
    entropy: jax.Array | None = None,
) -> tuple[jax.Array, dict]:
    """The loss of a batch, or of a microbatch: those of all microbatches add up to that of the batch.

    Args:
        logp, entropy: [B, S], of each token, by the policy that is trained; gradients flow to them.
        logp_old, logp_reference: [B, S], the same by the policy before the update and by the reference. No gradient.
        advantages: [B].
        response: [B, S] bool. Log-probs elsewhere mean nothing and are not read.
        correction: of these rows, see `mismatch.correct`.
        denominator: of the whole batch, see `denominator`.

    Returns:
        The loss, and float32 scalars that add up over microbatches too (`metrics.update` reads them): policy, kl and
        entropy, the parts of the loss as they were added to it; and over tokens learned from: tokens, clipped,
        sum_reference_kl, sum_entropy, sum_ratio, sum_old_kl (k1 of pi_old and pi).
    """
    if config.kl_weight and logp_reference is None:
        raise ValueError("a KL is part of the loss, and there are no log-probs of a reference")
    if config.entropy_weight and entropy is None:
        raise ValueError("the entropy is part of the loss, and it is not given")
    learned = response & correction.learned
    over_tokens = lambda x: jnp.sum(jnp.where(learned, x, 0.0))
    add = lambda x: _reduced(config, x, learned) / denominator

    d = log_ratio(logp, jax.lax.stop_gradient(logp_old), learned)
    if config.kind == "gspo":
        d = jnp.sum(d, axis=-1, keepdims=True) / jnp.maximum(jnp.sum(learned, axis=-1, keepdims=True), 1)
    r, advantage = jnp.exp(d), jax.lax.stop_gradient(advantages)[:, None]
    gain, clipped = surrogate(config.bounds, r, advantage)
    policy = add(-jax.lax.stop_gradient(correction.weights) * gain)
    loss = policy
    sums = {"policy": policy, "tokens": over_tokens(1.0), "clipped": over_tokens(clipped), "sum_ratio": over_tokens(r),
            "sum_old_kl": over_tokens(-d)}  # fmt: skip
    if logp_reference is not None:
        divergence = kl(config.kl, logp, logp_reference, learned)
        sums |= {"kl": config.kl_weight * add(divergence), "sum_reference_kl": over_tokens(divergence)}
        loss = loss + sums["kl"]
    if entropy is not None:
        sums |= {"entropy": -config.entropy_weight * add(entropy), "sum_entropy": over_tokens(entropy)}
        loss = loss + sums["entropy"]
    return loss, jax.tree.map(jax.lax.stop_gradient, sums)


def added(
    config: LossConfig, weight: float, values: jax.Array, learned: jax.Array, denominator: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A further part of the loss, from a value of each token [B, S], and the sum of these over tokens learned from."""
    return weight * _reduced(config, values, learned) / denominator, jnp.sum(jnp.where(learned, values, 0.0))


def surrogate(bounds: tuple[float, float] | None, r: jax.Array, advantage: jax.Array) -> tuple[jax.Array, jax.Array]:
    """PPO's min(r A, clip(r) A), and where its second term is the smaller, so that no gradient flows (bool)."""
    plain = r * advantage
    if bounds is None:
        return plain, jnp.zeros(plain.shape, bool)
    limited = jnp.clip(r, 1 - bounds[0], 1 + bounds[1]) * advantage
    return jnp.minimum(plain, limited), limited < plain


def kl(estimate: str, logp: jax.Array, logp_reference: jax.Array, mask: jax.Array) -> jax.Array:
    """KL(pi || reference) of each token, [B, S], 0 where `mask` is False; with d = log reference - log pi

    k1 = -d,  k3 = exp(d) - 1 - d, cut to 10 (where it is cut, no gradient flows).
    """
    d = -log_ratio(logp, jax.lax.stop_gradient(logp_reference), mask)
    found = ESTIMATES[estimate](d)
    return jnp.clip(found, -KL_BOUND, KL_BOUND) if estimate == "k3" else found


def _reduced(config: LossConfig, values: jax.Array, learned: jax.Array) -> jax.Array:
    """The sum over responses of the mean over their tokens that are learned from, or of the sum."""
    total = jnp.sum(jnp.where(learned, values, 0.0), axis=-1)
    if config.kind in ("grpo", "gspo"):
        total = total / jnp.maximum(jnp.sum(learned, axis=-1), 1)
    return jnp.sum(total)
