"""One counter for every method: closed forms of the paper, intervals, comparisons."""

import dataclasses
import math

import numpy as np
import pytest

from lt_jax.evaluation import metrics
from lt_jax.evaluation.results import Record
from lt_jax.evaluation.run import curve
from lt_jax.evaluation.trace import matrix, retrace
from lt_jax.layout.closing import closing
from lt_jax.layout.row import Role
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import draw

SPECIAL = SpecialTokens(eos=1, pad=0, trigger=90, output=91, gists=(80, 81, 82), memento=(70, 71, 72, 73))


@dataclasses.dataclass
class Done:
    """The fields of `decode.Completion` that the counter reads."""

    prompt_length: int
    forced: np.ndarray
    visible: np.ndarray
    held: np.ndarray
    compressions: int = 0
    seconds: float = 1.0


def counted(scheme, prompt, tokens, forced):
    """The completion as an engine that honours the layout's lifetimes would count it."""
    rule = closing(scheme, SPECIAL)
    row = retrace(range(100, 100 + prompt), tokens, forced, rule, SPECIAL.eos)
    seen = matrix(row, scheme.gist_rule)[prompt:].sum(1)
    # One pass feeds a closing token and all its forced tokens, so the whole pass is held while it runs.
    held, i = [], 0
    index = np.arange(len(row))
    while i < len(tokens):
        j = i + 1
        while j < len(tokens) and forced[j]:
            j += 1
        alive = int(((index < prompt + i) & (row.death > prompt + i)).sum())
        held += [alive + j - i] * (j - i)
        i = j
    compressions = 0 if rule is None else len({t for t in row.thought[row.role == Role.GIST].tolist()})
    return Done(prompt, np.array(forced, bool), seen, np.array(held), compressions)


def lightthinker(thoughts, n_gist=2):
    """Tokens and forced flags of thoughts of the given lengths (trigger included), then EOS."""
    tokens, forced = [], []
    for length in thoughts:
        tokens += [5] * (length - 1) + [90, *(80, 81, 82)[:n_gist], 91]
        forced += [False] * length + [True] * (n_gist + 1)
    return [*tokens, 1], [*forced, False]


@pytest.mark.parametrize("prompt, out", [(300, 200), (7, 1), (1, 50)])
def test_vanilla_closed_form(prompt, out):
    counts = metrics.count(counted(Scheme("vanilla"), prompt, [5] * (out - 1) + [1], [False] * out))
    assert counts.dependency == prompt * out + out * (out + 1) // 2 == metrics.keep_all(prompt, out)
    assert counts.peak == prompt + out
    assert (counts.generated, counts.forced) == (out, 0)


def test_reference_value_where_its_evaluator_is_negative():
    # spec 5: P=300, O=200 under a budget of 1024 gives -57,950 in the released evaluator, 80,100 by definition
    seen = np.minimum(300 + np.arange(1, 201), 1024)
    assert metrics.count(Done(300, np.zeros(200, bool), seen, seen)).dependency == 80_100


@pytest.mark.parametrize("prompt, out, budget", [(100, 900, 256), (300, 200, 300), (50, 50, 100)])
def test_h2o_closed_form(prompt, out, budget):
    seen = np.minimum(prompt + np.arange(1, out + 1), budget)
    done = Done(prompt, np.zeros(out, bool), seen, seen)
    paper = (2 * prompt * budget + 2 * out * budget - prompt**2 - budget**2) / 2
    # The paper integrates; the sum over whole tokens is half a token more for every step the cache grows.
    assert metrics.count(done).dependency == paper + (budget - prompt) / 2
    assert metrics.count(done).peak == budget


@pytest.mark.parametrize("n_gist", [1, 3])
def test_lightthinker_closed_form(n_gist):
    prompt, thoughts = 11, [4, 7, 2]
    tokens, forced = lightthinker(thoughts, n_gist)
    counts = metrics.count(counted(Scheme(n_gist=n_gist), prompt, tokens, forced))
    # Spec 5: every sampled token adds L_P + |current thought so far| + kept; a trigger adds |C| + 1 to what is kept.
    expected, kept, peak = 0, 0, 0
    for length in thoughts:
        expected += sum(prompt + kept + j for j in range(1, length + 1))
        peak = max(peak, prompt + kept + length + n_gist + 1)
        kept += n_gist + 1
    expected += prompt + kept + 1  # EOS
    assert counts.dependency == expected
    assert counts.peak == peak
    assert (counts.generated, counts.forced, counts.compressions) == (sum(thoughts) + 1, 3 * (n_gist + 1), 3)


def test_anllm_keeps_one_slot_a_thought():
    prompt, thoughts = 6, [3, 5]  # the anchor is the last token of each
    tokens = [5, 5, 80, 5, 5, 5, 5, 80, 1]
    counts = metrics.count(counted(Scheme("anllm"), prompt, tokens, [False] * 9))
    expected = kept = 0
    for length in thoughts:
        expected += sum(prompt + kept + j for j in range(1, length)) + length  # the anchor sees its own thought only
        kept += 1
    assert counts.dependency == expected + prompt + kept + 1
    assert (counts.compressions, counts.forced) == (2, 0)


def test_retrace_draws_the_rule():
    tokens, forced = lightthinker([3, 3], n_gist=1)
    row = retrace([100], tokens, forced, closing(Scheme(n_gist=1), SPECIAL), 1)
    assert draw(matrix(row), row.letters) == """\
    x s s w c o s s w c o e
x   1 . . . . . . . . . . .
s   1 1 . . . . . . . . . .
s   1 1 1 . . . . . . . . .
w   1 1 1 1 . . . . . . . .
c   1 1 1 1 1 . . . . . . .
o   1 . . . 1 1 . . . . . .
s   1 . . . 1 1 1 . . . . .
s   1 . . . 1 1 1 1 . . . .
w   1 . . . 1 1 1 1 1 . . .
c   1 . . . 1 1 1 1 1 1 . .
o   1 . . . 1 1 . . . 1 1 .
e   1 . . . 1 1 . . . 1 1 1"""


def test_retrace_memento_and_token_level():
    tokens = [5, 70, 5, 5, 71, 72, 6, 73, 1]
    row = retrace([100, 101], tokens, [False] * 9, closing(Scheme("memento"), SPECIAL), 1)
    assert row.letters == "xx" + row.letters[2] + "ssss" + row.letters[7:9] + "ce"
    alive = matrix(row)
    assert alive[9, :10].all()  # summary_end still sees the block
    assert alive[10].tolist() == [True] * 3 + [False] * 4 + [True] * 4
    scheme = Scheme(level="token", step=2, n_gist=1)
    row = retrace([100], [5, 6, 80, 91, 7, 8, 80, 91, 9], [0, 0, 1, 1, 0, 0, 1, 1, 0], closing(scheme, SPECIAL), 1)
    assert row.letters == "xsscosscos"
    assert row.death[1:3].tolist() == [4, 4] and row.death[5:7].tolist() == [8, 8]


def test_cut_off_block_is_not_a_compression():
    row = retrace([100], [5, 90], [False, False], closing(Scheme(n_gist=1), SPECIAL), 1)
    assert row.letters == "xss" and matrix(row)[-1].all()


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
    counts = metrics.Counts(5, generated, 0, 0, peak, dependency, 1.0)
    return Record(number, "all", "q", "a", "t", "a", correct, "eos", counts)


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
    done = counted(Scheme("vanilla"), 9, [5] * 29 + [1], [False] * 30)
    whole = Record(0, "all", "q", "a", "t", "a", True, "eos", metrics.count(done))
    summary = metrics.summarise([whole], seconds=2.0)
    assert summary.saving == 1.0 and summary.tokens_per_second == 15.0 and summary.unfinished == 0.0


def test_curve():
    got = curve([np.array([10, 11, 5]), np.array([20, 21])])
    assert got.at == [1, 2, 3] and got.alive == [2, 2, 1]
    assert got.mean == [15.0, 16.0, 5.0] and got.low[0] == 11.0 and got.high[0] == 19.0
    long = curve([np.arange(5000)])
    assert len(long.at) == 240 and long.at[-1] == 5000 and long.mean[-1] == 4999
    assert curve([]).at == []
