"""One counter for every method: closed forms of the paper, intervals, comparisons."""

import math

import numpy as np
import pytest

from lt_jax.decode import Completion
from lt_jax.decode.counts import Cost, count
from lt_jax.evaluation import metrics
from lt_jax.evaluation.results import Outcome
from lt_jax.evaluation.run import curve
from lt_jax.evaluation.trace import outline
from lt_jax.layout.build import build_row
from lt_jax.layout.closing import closing
from lt_jax.layout.scheme import Scheme
from tests.scripted import SPECIAL, completion, encode


def counted(scheme, prompt, thoughts, add_eos=True):
    """Counts of a completion laid out as in training: thoughts of the given numbers of tokens."""
    row = build_row(scheme, SPECIAL, [9] * prompt, [[5] * length for length in thoughts], encode, add_eos)
    return count(completion(row, scheme))


def budgeted(prompt, seen):
    """A completion of a method that keeps at most so many keys."""
    seen = np.asarray(seen, np.int32)
    n, blank = len(seen), np.zeros(prompt + len(seen), np.int32)
    nothing = np.zeros(n, bool)
    return Completion(0, blank[:prompt], blank[prompt:], nothing, ~nothing, np.zeros(n, np.float32), seen, seen,
                      nothing, np.zeros(0, int), blank, blank, blank, "eos", 1.0)  # fmt: skip


@pytest.mark.parametrize("prompt, out", [(300, 200), (7, 1), (1, 50)])
def test_vanilla_closed_form(prompt, out):
    counts = counted(Scheme("vanilla"), prompt, [out - 1])
    assert counts.dependency == prompt * out + out * (out + 1) // 2 == metrics.keep_all(prompt, out)
    assert counts.peak == prompt + out
    assert (counts.generated, counts.forced) == (out, 0)


def test_reference_value_where_its_evaluator_is_negative():
    # spec 5: P=300, O=200 under a budget of 1024 gives -57,950 in the released evaluator, 80,100 by definition
    assert count(budgeted(300, np.minimum(300 + np.arange(1, 201), 1024))).dependency == 80_100


@pytest.mark.parametrize("prompt, out, budget", [(100, 900, 256), (300, 200, 300), (50, 50, 100)])
def test_h2o_closed_form(prompt, out, budget):
    counts = count(budgeted(prompt, np.minimum(prompt + np.arange(1, out + 1), budget)))
    paper = (2 * prompt * budget + 2 * out * budget - prompt**2 - budget**2) / 2
    # The paper integrates; the sum over whole tokens is half a token more for every step the cache grows.
    assert counts.dependency == paper + (budget - prompt) / 2
    assert counts.peak == budget


@pytest.mark.parametrize("n_gist", [1, 3])
def test_lightthinker_closed_form(n_gist):
    prompt, thoughts = 11, [4, 7, 2]
    counts = counted(Scheme(n_gist=n_gist), prompt, thoughts)
    # Spec 5: every sampled token adds L_P + |current thought so far| + kept; a trigger adds |C| + 1 to what is kept.
    expected, kept, peak = 0, 0, 0
    for length in thoughts:
        expected += sum(prompt + kept + j for j in range(1, length + 2))  # the trigger is the thought's last token
        peak = max(peak, prompt + kept + length + 1 + n_gist + 1)
        kept += n_gist + 1
    assert counts.dependency == expected + prompt + kept + 1  # and EOS
    assert counts.peak == peak
    assert (counts.generated, counts.forced, counts.compressions) == (sum(thoughts) + 4, 3 * (n_gist + 1), 3)


def test_anllm_keeps_one_slot_a_thought():
    prompt, thoughts = 6, [2, 4]
    counts = counted(Scheme("anllm"), prompt, thoughts)
    expected = kept = 0
    for length in thoughts:
        expected += sum(prompt + kept + j for j in range(1, length + 1))
        expected += length + 1  # the anchor is sampled, and sees its own thought only
        kept += 1
    assert counts.dependency == expected + prompt + kept + 1
    assert (counts.compressions, counts.forced) == (2, 0)


MEMENTO = [5, *SPECIAL.memento[:1], 6, 6, *SPECIAL.memento[1:3], 7, *SPECIAL.memento[3:], 8]


@pytest.mark.parametrize(
    "scheme, segments, eos",
    [
        (Scheme("vanilla"), [[5, 6]], True),
        (Scheme(n_gist=2), [[5, 6], [7], [8, 8, 8]], True),
        (Scheme(n_gist=1, exclude_continue=True, see_current=True), [[5, 6], [7]], False),
        (Scheme("anllm"), [[5, 6], [7]], True),
        (Scheme(level="token", step=3, n_gist=2), [[5, 6, 7, 8, 9, 10, 11]], False),
        (Scheme("memento"), [MEMENTO + MEMENTO], True),
    ],
    ids=["vanilla", "lightthinker", "options", "anllm", "token", "memento"],
)
def test_outline_is_the_training_row(scheme, segments, eos):
    row = build_row(scheme, SPECIAL, [9, 9, 9], segments, encode, eos)
    role, thought = outline(completion(row, scheme), closing(scheme, SPECIAL))
    assert role.tolist() == row.role.tolist()
    assert thought.tolist() == row.thought.tolist()


def test_wilson():
    assert metrics.wilson(0, 20) == metrics.Interval(0.0, 0.0, pytest.approx(0.1611, abs=1e-4))
    middle = metrics.wilson(81, 263)  # Newcombe (1998), table I
    assert (middle.low, middle.high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert metrics.wilson(20, 20).high == 1.0
    assert math.isnan(metrics.wilson(0, 0).value)


def test_wilson_covers_on_average():
    total = 60
    intervals = [metrics.wilson(k, total) for k in range(total + 1)]
    covered = []
    for share in np.linspace(0.02, 0.98, 97):
        chance = [math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(total + 1)]
        covered.append(sum(c for c, i in zip(chance, intervals, strict=True) if i.low <= share <= i.high))
    assert 0.945 <= np.mean(covered) <= 0.96


def record(number, correct, peak=10, dependency=100, generated=20):
    counts = Cost(5, generated, 0, 0, peak, dependency, 1.0)
    return Outcome(number, "all", "q", "a", "t", "a", correct, "eos", counts)


def test_paired():
    first = [record(i, i < 85, peak=30) for i in range(100)]
    second = [record(i, 5 <= i < 92, peak=60) for i in range(100)]
    result = metrics.paired(first, second)
    assert (result.only_first, result.only_second, result.total) == (5, 7, 100)
    assert result.difference.value == pytest.approx(-0.02)
    assert result.difference.low == pytest.approx((-2 - 1.96 * math.sqrt(13 - 4 / 102)) / 102, abs=1e-4)
    assert result.peak.value == pytest.approx(0.5) and result.peak.low == pytest.approx(0.5)
    same = metrics.paired(first, first).difference
    assert same.value == 0 and same.low == -same.high and 0 < same.high < 0.03
    with pytest.raises(ValueError, match="same problems"):
        metrics.paired(first, second[1:])


def test_paired_difference_covers():
    cells = np.random.default_rng(1).multinomial(200, (0.85, 0.06, 0.03, 0.06), 1000)
    intervals = [metrics.difference(int(a), int(b), 200) for _, a, b, _ in cells]
    assert 930 <= sum(i.low <= 0.03 <= i.high for i in intervals) <= 980


def test_ratio_of_means():
    rng = np.random.default_rng(2)
    base = rng.uniform(50, 150, 400)
    interval = metrics.ratio(base * 0.3 + rng.normal(0, 2, 400), base)
    assert interval.low < 0.3 < interval.high and interval.high - interval.low < 0.01


def test_summary_saving_is_one_for_vanilla():
    whole = Outcome(0, "all", "q", "a", "t", "a", True, "eos", counted(Scheme("vanilla"), 9, [29]))
    summary = metrics.summarise([whole], seconds=2.0)
    assert summary.saving == 1.0 and summary.tokens_per_second == 15.0 and summary.unfinished == 0.0


def test_curve():
    got = curve([np.array([10, 11, 5]), np.array([20, 21])])
    assert got.at == [1, 2, 3] and got.alive == [2, 2, 1]
    assert got.mean == [15.0, 16.0, 5.0] and got.low[0] == 11.0 and got.high[0] == 19.0
    long = curve([np.arange(5000)])
    assert len(long.at) == 240 and long.at[-1] == 5000 and long.mean[-1] == 4999
    assert curve([]).at == []
