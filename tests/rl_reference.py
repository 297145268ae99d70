"""An update of reinforcement learning once more, in float64, from the formulas: model, distributions and loss.

Nothing here calls the library. N, k, r and w are those of Sparse-RL's objective (arXiv 2601.10079). What a gradient
goes through is written for numpy and for jax.numpy alike (`xp`): numpy gives the loss, jax.numpy its gradient. `params`
is the library's tree of a small Llama with biases and a tied head, in float64. For tests only.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sizes:
    """heads, kv_heads and head size of the model, its RoPE base, the eps of its norms; ids that are never drawn."""

    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float
    allowed: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss's own settings; `length` is the constant of dr_grpo, `dense` the weight of KL(dense || replay)."""

    kind: str
    clip: tuple[float, float] | None
    kl: str
    kl_weight: float
    entropy_weight: float
    length: int
    dense: float
    temperature: float


def visible(death, since):
    """death [B, L, Hkv, S], since [B, S] -> [L, B, Hkv, S queries, S keys]: born, not dead, not too old."""
    index = np.arange(death.shape[-1])
    born, alive = index[None, :] <= index[:, None], index[:, None] < death[..., None, :]
    return (born & alive & (index >= since[..., None])[:, None, None]).swapaxes(0, 1)


def hidden(xp, params, sizes, tokens, mask):
    """Hidden states [B, S, E] after the final norm, every layer written out."""
    rows, length = tokens.shape
    half = np.arange(0, sizes.head_dim, 2) / sizes.head_dim
    angle = (np.arange(length)[:, None] / sizes.rope_theta**half)[:, None]

    def norm(x, weight):
        return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + sizes.norm_eps) * weight

    def rotated(x):
        a, b = x[..., : sizes.head_dim // 2], x[..., sizes.head_dim // 2 :]
        return xp.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)

    x = params["embed"][tokens]
    for layer, seen in enumerate(mask):
        part = lambda name, leaf="w", layer=layer: params["layers"][name][leaf][layer]
        y = norm(x, params["layers"]["attn_norm"][layer])
        heads = lambda name, n, y=y, part=part: (y @ part(name) + part(name, "b")).reshape(rows, length, n, -1)
        q, k, v = rotated(heads("q", sizes.heads)), rotated(heads("k", sizes.kv_heads)), heads("v", sizes.kv_heads)
        q = q.reshape(rows, length, sizes.kv_heads, -1, sizes.head_dim)
        scores = xp.einsum("btkgd,bskd->bkgts", q, k) / math.sqrt(sizes.head_dim)
        scores = xp.exp(xp.where(seen[:, :, None], scores, -1e30))
        weights = scores / xp.sum(scores, axis=-1, keepdims=True)
        x = x + xp.einsum("bkgts,bskd->btkgd", weights, v).reshape(rows, length, -1) @ part("o")
        y = norm(x, params["layers"]["mlp_norm"][layer])
        gate = y @ part("gate")
        x = x + (gate / (1 + xp.exp(-gate)) * (y @ part("up"))) @ part("down")
    return norm(x, params["final_norm"])


def distributions(xp, params, sizes, temperature, tokens, mask):
    """log p [B, S, ids allowed]: [b, t] is what token t is drawn from; of token 0, of which nothing is known, 0."""
    scores = hidden(xp, params, sizes, tokens, mask) @ params["embed"][np.array(sizes.allowed)].T / temperature
    logs = scores - xp.log(xp.sum(xp.exp(scores), axis=-1, keepdims=True))
    return xp.concatenate([xp.zeros_like(logs[:, :1]), logs[:, :-1]], axis=1)


def of_tokens(xp, logs, sizes, tokens):
    """[B, S] log-probs of the tokens themselves; those of ids that are never drawn mean nothing."""
    place = xp.searchsorted(np.array(sizes.allowed), tokens) % len(sizes.allowed)
    return xp.take_along_axis(logs, place[..., None], axis=-1)[..., 0]


def ratio(xp, loss, logp, b):
    """pi / pi_old of each token that is learned from, [B, S]; in gspo their geometric mean. 1 elsewhere."""
    d = xp.where(b["learned"], logp - b["logp_old"], 0)
    if loss.kind == "gspo":
        d = xp.sum(d, axis=1, keepdims=True) / xp.maximum(xp.sum(b["learned"], axis=1, keepdims=True), 1) + 0 * d
    return xp.exp(d)


def divisor(loss, b, count_rejected):
    """N, or the tokens of dapo, or N times the constant length of dr_grpo; `b` is of one update."""
    counted = np.ones_like(b["accepted"]) if count_rejected else b["accepted"]
    if loss.kind == "dapo":
        return max(1, int((b["kept"] & counted[:, None]).sum()))
    return max(1, int(counted.sum())) * (loss.length if loss.kind == "dr_grpo" else 1)


def whole_loss(xp, logs, dense, sizes, loss, b):
    """The loss of an update, a scalar, of what the policy says of its rows.

    Args:
        logs: `distributions` of the policy that is trained, as it sees the rows.
        dense: the same as it sees them without evictions, for KL(dense || replay); else anything.
        b: of its rows: tokens, advantages, logp_old, logp_reference, weights, learned (k), divisor; and replay,
            what `logs` was and does not move, for that KL.
    """
    logp, advantage = of_tokens(xp, logs, sizes, b["tokens"]), b["advantages"][:, None]
    r = ratio(xp, loss, logp, b)
    gain = r * advantage
    if loss.clip:
        gain = xp.minimum(gain, xp.clip(r, 1 - loss.clip[0], 1 + loss.clip[1]) * advantage)
    d = xp.where(b["learned"], b["logp_reference"] - logp, 0)
    kl = -d if loss.kl == "k1" else xp.clip(xp.exp(d) - 1 - d, -10, 10)
    entropy = -xp.sum(xp.exp(logs) * logs, axis=-1)
    terms = -b["weights"] * gain + loss.kl_weight * kl - loss.entropy_weight * entropy
    if loss.dense:
        terms = terms + loss.dense * xp.sum(xp.exp(dense) * (dense - b["replay"]), axis=-1)
    each = xp.sum(xp.where(b["learned"], terms, 0), axis=1)
    if loss.kind in ("grpo", "gspo"):
        each = each / xp.maximum(xp.sum(b["learned"], axis=1), 1)
    return xp.sum(each) / b["divisor"]
