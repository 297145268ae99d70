"""The settings that correct rollouts whose sampler is not the policy that learns, and the presets of the arms.

What differs: the names are those of verl's `rollout_correction`, with TRL's four accepted beside them. Paper and
release are presets. The paper's summaries have the veto and the truncated weights; the release adds a band and batch
normalisation of weights.
"""

from __future__ import annotations

import dataclasses
import math

from lt_jax.errors import UserError

BOUND = 20.0  # the largest |log xi| that is told apart, as in slime and verl

IS_LEVELS = ("token", "sequence", "geometric")
TRL_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
RS_LEVELS = ("token", "seq_sum", "seq_mean", "seq_max")
ESTIMATORS = ("k1", "k2", "k3")
RS_OPTIONS = tuple(f"{level}_{k}" for level in RS_LEVELS for k in ESTIMATORS)


@dataclasses.dataclass(frozen=True)
class MismatchConfig:
    """How much a token counts whose sampler saw less than the learner, and which tokens and responses are dropped.

    With xi = pi_old / pi_sampler of a sampled token: `rollout_is` weighs, all others reject, and a token is learned
    from if every one of them lets it pass.

    Attributes:
        rollout_is: what a token is weighed by. None: 1. "token": its xi. "sequence": the product of its response's xi.
            "geometric": their geometric mean. Or a mode of TRL: "token_truncate" and "sequence_truncate" are the same
            as "token" and "sequence", "token_mask" and "sequence_mask" the same with a weight of 0 above the threshold.
        rollout_is_threshold: an upper bound that weights are cut to, or "low_high", outside of which they are 0
            (IcePop; the token still counts in the length of its response). None is verl's 2.0, or TRL's 3.0 with a mode
            of TRL.
        rollout_is_batch_normalize: weights are divided by their mean over the response tokens of the batch (by the mean
            over responses, if a response has one weight). Rejected tokens are part of the mean, as in the release.
        rollout_rs: criteria of `RS_OPTIONS`, with commas between them. For d = log xi, k1 is -d, k2 is d^2 / 2 and k3
            is xi - 1 - d. "token_" drops single tokens; the sum, mean or largest of a response drops the response.
            "seq_max_k1", which verl does not have, drops a response that has a token which "token_k1" would drop.
        rollout_rs_threshold: one for all criteria, or as many, with commas between them. The largest value for k2 and
            k3. For k1, "low_high" bounds of exp(k1), or the upper one alone, whose inverse is the lower. As in verl,
            these bound 1 / xi, not xi: "0.5_1.5" keeps xi from 0.67 to 2. `band` bounds xi itself.
        veto: a response with any xi below it is dropped.
        band: (low, high); tokens whose xi is outside are dropped.
        tail: (q, least); a response is dropped when the q-quantile of its tokens' xi is below `least`.

    Raises:
        UserError: a name that does not exist, a bound that cannot be met, a setting that would be ignored.
    """

    rollout_is: str | None = None
    rollout_is_threshold: float | str | None = None
    rollout_is_batch_normalize: bool = False
    rollout_rs: str | None = None
    rollout_rs_threshold: float | str | None = None
    veto: float | None = None
    band: tuple[float, float] | None = None
    tail: tuple[float, float] | None = None

    def __post_init__(self):
        for name, form in (("band", "(low, high), such as (0.5, 1.5)"), ("tail", "(quantile, least xi)")):
            value = getattr(self, name)
            if value is not None:
                if not (isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))):
                    raise UserError(f"mismatch.{name} is {value!r}; it is {form}")
                object.__setattr__(self, name, tuple(value))
        if not isinstance(self.rollout_is_batch_normalize, bool):  # any text would be taken for yes
            raise UserError(f"mismatch.rollout_is_batch_normalize is {self.rollout_is_batch_normalize!r}; it is True "
                            "or False")  # fmt: skip
        weight_bounds(self)
        criteria(self)
        if self.rollout_is is None and self.rollout_is_batch_normalize:
            raise UserError("mismatch.rollout_is_batch_normalize is set, but there are no weights; set "
                            "mismatch.rollout_is")  # fmt: skip
        if self.veto is not None and not (is_number(self.veto) and math.exp(-BOUND) < self.veto < 1):
            raise UserError(f"mismatch.veto is {self.veto!r}; it must be above {math.exp(-BOUND):.1e} and below 1")
        if self.band is not None and not 0 <= self.band[0] < 1 < self.band[1]:
            raise UserError(f"mismatch.band is {self.band}; it is (low, high) with 0 <= low < 1 < high")
        if self.tail is not None and not (0 <= self.tail[0] < 1 and 0 < self.tail[1] < 1):
            raise UserError(f"mismatch.tail is {self.tail}; it is (quantile, least xi), both below 1")


@dataclasses.dataclass(frozen=True)
class WeightBounds:
    """`level`, of `IS_LEVELS`; weights are cut to `high`, or are 0 outside of [low, high] if `zero`."""

    level: str
    low: float
    high: float
    zero: bool


def weight_bounds(config: MismatchConfig) -> WeightBounds | None:
    """What `rollout_is` and its threshold say; None without weights."""
    name, given = config.rollout_is, config.rollout_is_threshold
    if name is None:
        if given is not None:
            raise UserError(f"mismatch.rollout_is_threshold is {given}, but mismatch.rollout_is is None; set both")
        return None
    if name not in IS_LEVELS + TRL_MODES:
        raise UserError(f"mismatch.rollout_is is {name!r}; it is None or one of {', '.join(IS_LEVELS + TRL_MODES)}")
    key, trl = "mismatch.rollout_is_threshold", name in TRL_MODES
    low, high = _range((3.0 if trl else 2.0) if given is None else given, key)
    if name.endswith("_truncate") and low is not None:
        raise UserError(f"{key} is {given!r}; {name} has an upper bound only")
    if not (0 <= (low or 0) <= 1 <= high < math.inf and low != high):
        raise UserError(f"{key} is {given!r}; it is an upper bound, 1 or more, or low_high with low <= 1 <= high")
    return WeightBounds(name.split("_")[0], low or 0.0, high, low is not None or name.endswith("_mask"))


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A statistic, `level` of `RS_LEVELS` and `estimator` of `ESTIMATORS`, that must be in [low, high]."""

    level: str
    estimator: str
    low: float
    high: float


def criteria(config: MismatchConfig) -> tuple[Criterion, ...]:
    """What `rollout_rs` and its thresholds say."""
    key, given = "mismatch.rollout_rs_threshold", config.rollout_rs_threshold
    if (config.rollout_rs is None) != (given is None):
        raise UserError(f"mismatch.rollout_rs is {config.rollout_rs!r} and {key} is {given!r}; set both or neither")
    if config.rollout_rs is None:
        return ()
    names = [name.strip() for name in str(config.rollout_rs).split(",")]
    thresholds = given.split(",") if isinstance(given, str) else [given]
    for name in names:
        if name not in RS_OPTIONS:
            raise UserError(f"mismatch.rollout_rs has {name!r}; criteria are {', '.join(RS_OPTIONS)}")
    if len(thresholds) not in (1, len(names)):
        raise UserError(f"{key} has {len(thresholds)} thresholds for {len(names)} criteria; give one for each, or one")
    thresholds = thresholds * (len(names) // len(thresholds))
    return tuple(_criterion(name, threshold, key) for name, threshold in zip(names, thresholds, strict=True))


def _criterion(name: str, given, key: str) -> Criterion:
    low, high = _range(given, key)
    level, _, estimator = name.rpartition("_")
    if estimator != "k1":
        if low is not None or not 0 < high < math.inf:
            raise UserError(f"{key} is {given!r} for {name}; it is one number above 0, the largest that passes")
        return Criterion(level, estimator, -math.inf, high)
    low = 1 / high if low is None and high > 1 else low
    if low is None or not (0 < low <= 1 <= high < math.inf and low != high):
        raise UserError(f"{key} is {given!r} for {name}; it is low_high with 0 < low <= 1 <= high, or a number above 1")
    return Criterion(level, estimator, math.log(low), math.log(high))


def is_number(value) -> bool:
    """Whether a setting, which may be what a command line or a file gives, is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(given, key: str) -> tuple[float | None, float]:
    """(low or None, high) of a number, or of the text "high" or "low_high"."""
    try:
        low, split, high = str(given).rpartition("_")
        return (float(low) if split else None), float(high)
    except ValueError:
        raise UserError(f"{key} is {given!r}; it is a number, or two as in 0.5_5.0") from None


PAPER = MismatchConfig(rollout_is="token", rollout_is_threshold=1.5, veto=1e-4)

PRESETS = {
    "naive": MismatchConfig(),
    "paper": PAPER,
    "release": dataclasses.replace(PAPER, band=(0.5, 1.5), rollout_is_batch_normalize=True),
}
