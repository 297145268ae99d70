"""The policies once more, from their formulas: float64 numpy, loops, one row and head at a time. For tests only."""

import numpy as np


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def importance(k, queries, window, kernel):
    """k [S, D], queries [g, w, D] of one kv head, all keys alive and in birth order: [S], -inf in the window."""
    old = len(k) - window
    logits = np.einsum("gqd,sd->gqs", queries, k[:old]).max(0) / np.sqrt(k.shape[1])
    mean = np.mean([softmax(line) for line in logits], 0)
    half = kernel // 2
    pooled = [mean[max(0, i - half) : i + half + 1].max() for i in range(old)]
    return np.array(pooled + [-np.inf] * window)


def redundancy(k, threshold, forgive_first=False):
    """k [S, D]: [S], with the S x S matrix written out."""
    unit = k / (np.linalg.norm(k, axis=1, keepdims=True) + 1e-8)
    c = unit @ unit.T
    np.fill_diagonal(c, 0)
    charged = c.copy()
    for i in range(len(k)):
        similar = [j for j in range(len(k)) if c[i, j] > threshold]
        if similar or forgive_first:
            charged[i, similar[-1] if similar else 0] = 0
    return softmax(charged.mean(0))


def received(k, queries, asked, birth):
    """Attention of queries [g, Q, D] with indices `asked`, each over the keys born by then: [S]."""
    total = np.zeros(len(k))
    for group in queries:
        for q, index in zip(group, asked, strict=True):
            there = birth <= index
            total[there] += softmax(k[there] @ q / np.sqrt(k.shape[1]))
    return total


def sepllm(birth, separator, how, index):
    """birth [S], separator [S] bool of one head: the newest separators before the window first, then the newest."""
    score = birth / (index + 1)
    old = [i for i in np.argsort(-birth) if separator[i] and birth[i] < index - how.window]
    score[old[: how.separator_room]] += 2
    return score


def scores(policy, k, queries, how, index, birth=None, total=None, separator=None):
    """[Hkv, S] for one row whose keys [Hkv, S, D] are all alive and in birth order, queries [H, w, D] the last w.

    birth: [Hkv, S], 0..S-1 if not given. total: [Hkv, S] attention received (H2O). separator: [Hkv, S] bool.
    """
    heads, length = k.shape[:2]
    grouped = queries.reshape(heads, -1, *queries.shape[1:])
    asked = np.arange(index - queries.shape[1], index)
    own = np.tile(np.arange(length), (heads, 1)) if birth is None else birth
    if policy == "full":
        return np.ones((heads, length))
    if policy == "streaming":
        return own.astype(float)
    if policy == "sepllm":
        return np.stack([sepllm(own[h].astype(float), separator[h], how, index) for h in range(heads)])
    if policy == "knorm":
        return -np.linalg.norm(k, axis=-1)
    if policy == "keydiff":
        unit = k / (np.linalg.norm(k, axis=-1, keepdims=True) + 1e-8)
        mean = unit.mean(1, keepdims=True)
        return -(unit * mean).sum(-1) / np.maximum(np.linalg.norm(mean, axis=-1), 1e-8)
    if policy == "tova":
        each = [softmax(k[h] @ grouped[h, g, -1] / np.sqrt(k.shape[-1])) for h in range(heads)
                for g in range(grouped.shape[1])]
        return np.tile(np.mean(each, 0), (heads, 1))
    if policy == "h2o" and total is not None:
        return total
    if policy == "h2o":
        return np.stack([received(k[h], grouped[h], asked, own[h]) for h in range(heads)])
    one = {
        "snapkv": lambda h: importance(k[h], grouped[h, :, -how.window :], how.window, how.kernel),
        "rkv": lambda h: how.mix * importance(k[h], grouped[h, :, -how.window :], how.window, how.kernel)
        - (1 - how.mix) * redundancy(k[h], how.threshold, how.order == "reference"),
    }[policy]
    return np.stack([one(h) for h in range(heads)])


def check_kept(kept, score, protected, budget, tolerance):
    """Tie-aware: `kept` [S] bool is a best choice of `budget` keys by `score` [S], `protected` first.

    Where scores differ by less than `tolerance` either may stay.
    """
    assert kept.sum() == min(budget, len(kept))
    assert kept[protected].all()
    free = ~protected
    if (kept & free).any() and (~kept & free).any():
        worst, best = score[kept & free].min(), score[~kept & free].max()
        assert worst >= best - tolerance, (worst, best)
