"""Rows against a brute-force reading of the method's rules, written over a table of segments."""

import dataclasses
import itertools

import numpy as np
import pytest

from lt_jax.errors import UserError
from lt_jax.layout.build import build_row
from lt_jax.layout.closing import ANY, closing
from lt_jax.layout.memento import write_memento
from lt_jax.layout.prompt import Prompt, build_prompt, dropped_after_prefill
from lt_jax.layout.row import Role
from lt_jax.layout.scheme import Scheme
from lt_jax.lifetimes import NEVER, dense_mask, draw
from tests.layout_tools import TABLE, assert_drawn, characters

RULES = ("causal", "bidirectional", "diagonal")
PROMPTS = [
    {},
    *({"prompt": "tokens", "prompt_step": 3, "prefill_compress": inside, "save_template": keep}
      for inside in (True, False) for keep in (True, False)),
    *({"prompt": "sentences", "prefill_compress": inside, "save_template": keep}
      for inside in (True, False) for keep in (True, False)),
]
CHAT = Prompt((("<s>", True), ("Be it. So!", False), ("<u>", True), ("2+3?", False), ("<a>", True)))
THOUGHTS = [[100, 101], [102], [103, 104, 105]]


def mask_of(row, scheme):
    return np.asarray(dense_mask(row.lifetimes(scheme.gist_rule)))[0, 0]


# --- the oracle: a table of (kind, block, length), and the rules of the paper cell by cell -------------------------


def prompt_table(scheme):
    """T template or whole prompt, A a chunk, P its gists; written out by hand for CHAT."""
    n = scheme.gist_tokens
    if scheme.prompt is None:
        return [("T", -1, len(CHAT.text))]
    if scheme.prompt == "tokens":
        pieces = [(3, 0), (10, 1), (3, 0), (4, 1), (3, 0)] if scheme.save_template else [(23, 1)]
        chunks = []
        for length, compressed in pieces:
            full, rest = divmod(length, 3) if compressed else (0, length)
            chunks += [(3, True)] * full + [(rest, False)] * (rest > 0)
    elif scheme.save_template:
        chunks = [(3, False), (6, True), (4, True), (3, False), (4, True), (3, False)]
    else:  # "<s>Be it.", " So!<u>2+3?<a>"
        chunks = [(9, True), (14, True)]
    table = []
    for number, (length, compressed) in enumerate(chunks):
        table += [("A", number, length), ("P", number, n)] if compressed else [("T", -1, length)]
    return table


def response_table(scheme, lengths):
    table = []
    for block, length in enumerate(lengths):
        table += [("S", block, length + scheme.has_trigger), ("I", block, len(scheme.instruction))]
        table += [("C", block, scheme.gist_tokens), ("O", block, int(scheme.has_output))]
    return [*table, ("E", -1, 1)]


def oracle(scheme, table):
    """bool [N, N] straight from the rules R1, R2, R3 and the override inside a gist block."""
    cells = [(kind, block) for kind, block, length in table for _ in range(length)]
    first = {}
    for position, cell in enumerate(cells):
        first.setdefault(cell, position)
    output_begins = next(i for i, (kind, _) in enumerate(cells) if kind not in "TAP")
    inside = scheme.prompt is not None and scheme.prefill_compress
    mask = np.zeros((len(cells), len(cells)), bool)
    for q, (q_kind, q_block) in enumerate(cells):
        for k, (k_kind, k_block) in enumerate(cells):
            seen = k <= q
            same = q_block == k_block
            if k_kind in "SI" and ("C", k_block) in first:
                seen &= same and q_kind in "SIC"
            if k_kind == "A":
                seen &= (same and q_kind in "AP") if inside else q < output_begins
            if scheme.current_only and q_kind == "C":
                seen &= k >= first.get(("S", q_block), first[("C", q_block)])
            if scheme.current_only and q_kind == "P" and inside:
                seen &= k >= first[("A", q_block)]
            if scheme.exclude_continue and k_kind == "O" and ("O", k_block + 1) in first:
                seen &= q < first[("O", k_block + 1)]
            if same and q_kind == k_kind and (q_kind == "C" or (q_kind == "P" and inside)):
                seen = {"causal": k <= q, "bidirectional": True, "diagonal": q == k}[scheme.gist_rule]
            mask[q, k] = seen
    return mask


KINDS = {"T": Role.PROMPT, "A": Role.PROMPT, "P": Role.GIST, "I": Role.INSTRUCTION, "C": Role.GIST,
         "O": Role.OUTPUT, "E": Role.EOS}


def check(scheme, row, table):
    cells = [kind for kind, _, length in table for _ in range(length)]
    assert len(row) == len(cells)
    np.testing.assert_array_equal(mask_of(row, scheme), oracle(scheme, table), err_msg=f"{scheme}")
    anchors = "C" if scheme.method == "anllm" else ""
    assert row.trained.tolist() == [kind in "SE" + anchors for kind in cells]
    assert row.position.tolist() == list(range(len(cells)))
    for kind, role in KINDS.items():
        assert all(row.role[i] == role for i, cell in enumerate(cells) if cell == kind)


@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_lightthinker_rows_follow_the_rules(prompt):
    for see, rule, exclude, text in itertools.product((False, True), RULES, (False, True), ("", "gist:")):
        scheme = Scheme(
            n_gist=3, see_current=see, gist_rule=rule, exclude_continue=exclude, instruction=text, **prompt
        )
        row = build_row(scheme, TABLE, CHAT, THOUGHTS, characters)
        check(scheme, row, [*prompt_table(scheme), *response_table(scheme, [2, 1, 3])])


@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_anllm_rows_follow_the_rules(prompt):
    scheme = Scheme("anllm", **prompt)
    row = build_row(scheme, TABLE, CHAT, THOUGHTS, characters)
    check(scheme, row, [*prompt_table(scheme), *response_table(scheme, [2, 1, 3])])


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_token_level_rows_follow_the_rules(step):
    for see, rule, exclude in itertools.product((False, True), RULES, (False, True)):
        scheme = Scheme(level="token", step=step, n_gist=2, see_current=see, gist_rule=rule, exclude_continue=exclude)
        row = build_row(scheme, TABLE, CHAT, ["abc", "defg"], characters)  # 7 characters and EOS
        table, left, block = prompt_table(scheme), 8, 0
        while left > step:
            table += [("S", block, step), ("C", block, 2), ("O", block, 1)]
            left, block = left - step, block + 1
        table += [("S", block, left - 1), ("E", block, 1)]
        check(scheme, row, table)
        open_ended = build_row(scheme, TABLE, CHAT, ["abcd"], characters, add_eos=False)
        assert (open_ended.role[-1] == Role.OUTPUT) == (4 % step == 0)


def test_vanilla_is_causal_and_trains_everything_after_the_prompt():
    row = build_row(Scheme("vanilla"), TABLE, [30, 31], ["ab", "c"], characters)
    assert row.tokens.tolist() == [30, 31, *characters("abc"), 1]
    assert row.trained.tolist() == [False] * 2 + [True] * 4
    np.testing.assert_array_equal(mask_of(row, Scheme("vanilla")), np.tri(6, dtype=bool))


# --- pictures ------------------------------------------------------------------------------------------------------

PICTURES = [
    ({}, "lightthinker"),
    ({"see_current": True}, "lightthinker"),
    ({"see_current": True, "gist_rule": "bidirectional"}, "lightthinker"),
    ({"exclude_continue": True}, "lightthinker"),
    ({"gist_rule": "diagonal"}, "lightthinker"),
    ({}, "anllm"),
]


@pytest.mark.parametrize("options, method", PICTURES)
def test_the_pictures_of_build_row_are_its_masks(options, method):
    lightthinker = method == "lightthinker"
    scheme = Scheme(method, **({"n_gist": 2} if lightthinker else {}), **options)
    thoughts = [[100], [101]] if lightthinker else [[100, 101], [102, 103]]
    row = build_row(scheme, TABLE, [30], thoughts, characters)
    assert_drawn(f"{' '.join(row.letters)}\n{draw(mask_of(row, scheme))}", build_row)


@pytest.mark.parametrize("inside", [True, False])
def test_the_pictures_of_build_prompt_are_its_masks(inside):
    scheme = Scheme(n_gist=1, prompt="tokens", prompt_step=2, prefill_compress=inside)
    chat = Prompt((("t", True), ("abcd", False), ("t", True)))
    prompt = build_prompt(scheme, TABLE, chat, characters)
    row = prompt if inside else build_row(scheme, TABLE, chat, [[100]], characters)
    size = 8 if inside else 9
    assert_drawn(draw(mask_of(row, scheme)[:size, :size]), build_prompt)
    assert dropped_after_prefill(prompt) == 4
    assert prompt.prompt_length == len(prompt) == build_row(scheme, TABLE, chat, [[100]], characters).prompt_length


def test_the_picture_of_memento_is_its_mask():
    scheme = Scheme("memento")
    row = build_row(scheme, TABLE, [30], [[7, 100, 101, 8, 9, 102, 103, 10, 104]], characters, add_eos=False)
    assert_drawn(f"{' '.join(row.letters)}\n{draw(mask_of(row, scheme))}", write_memento)


# --- tokens and text -----------------------------------------------------------------------------------------------


def test_the_order_of_tokens_and_their_thoughts():
    row = build_row(Scheme(n_gist=2, instruction="!"), TABLE, [30], [[100], [101]], characters)
    assert row.tokens.tolist() == [30, 100, 2, 53, 4, 5, 3, 101, 2, 53, 4, 5, 3, 1]
    assert row.letters == "xswiccoswiccoe"
    assert row.thought.tolist() == [-1] + [0] * 6 + [1] * 6 + [-1]
    assert row.gist.tolist() == [-1, -1, -1, -1, 0, 0, -1, -1, -1, -1, 1, 1, -1, -1]


@pytest.mark.parametrize("ending, kept", [("\n", "ab\n"), ("", "ab"), (None, "ab\n\n")])
def test_the_ending_replaces_trailing_newlines(ending, kept):
    table = dataclasses.replace(TABLE, ending=ending)
    row = build_row(Scheme(n_gist=1), table, [30], ["ab\n\n", " \n"], characters, add_eos=False)
    assert row.tokens.tolist() == [30, *characters(kept), 2, 4, 3]


def test_a_trigger_inside_a_segment_ends_a_thought():
    merged = build_row(Scheme(n_gist=1), TABLE, [30], [[100, 2, 101, 2]], characters)
    apart = build_row(Scheme(n_gist=1), TABLE, [30], [[100], [101]], characters)
    for name in vars(apart):
        np.testing.assert_array_equal(getattr(merged, name), getattr(apart, name))


@pytest.mark.parametrize("where, prompt, thoughts", [("prompt", [30, 4], [[100]]), ("segment 1", [30], [[100], [3]])])
def test_control_tokens_in_the_text_are_refused(where, prompt, thoughts):
    with pytest.raises(UserError, match=where):
        build_row(Scheme(n_gist=1), TABLE, prompt, thoughts, characters)


def test_an_empty_prompt_is_refused():
    with pytest.raises(UserError, match="prompt is empty"):
        build_row(Scheme(), dataclasses.replace(TABLE, gists=tuple(range(4, 13))), "", [[100]], characters)


# --- memento -------------------------------------------------------------------------------------------------------


def test_memento_matches_a_reading_of_its_rule():
    ids = [40, 7, 41, 42, 8, 9, 43, 10, 44, 7, 45, 8, 46, 9, 47, 10, 48]
    row = build_row(Scheme("memento"), TABLE, [30, 31], [ids], characters)
    blocks = [(3, 7, 9), (11, 14, 17)]  # first, after the last, index of summary_end; by hand
    expected = np.tri(len(row), dtype=bool)
    for start, stop, end in blocks:
        expected[end + 1 :, start:stop] = False
    np.testing.assert_array_equal(mask_of(row, Scheme("memento")), expected)
    assert row.trained.tolist() == [False] * 2 + [True] * (len(ids) + 1)


@pytest.mark.parametrize("ids", [[7, 40, 8], [40, 8, 9, 41, 10], [7, 40, 9, 41, 10], [10, 9, 8, 7]])
def test_memento_markers_without_partner_end_nothing(ids):
    assert (build_row(Scheme("memento"), TABLE, [30], [ids], characters).death == NEVER).all()


# --- the closing, as a decoder uses it -----------------------------------------------------------------------------


def replay(scheme, prompt, sampled):
    """Feeds sampled tokens and what the closing forces; returns tokens, deaths and sinces as a controller has them."""
    close = closing(scheme, TABLE, characters)
    tokens, death, since = list(prompt), [NEVER] * len(prompt), [0] * len(prompt)
    begin, output, count = len(tokens), None, 0
    opened = stopped = None
    for token in sampled:
        at = len(tokens)
        tokens.append(token)
        death.append(NEVER)
        since.append(0)
        count += 1
        if close.opens is not None:
            if token == close.opens:
                opened, stopped = at, None
            elif token == close.shuts and opened is not None and stopped is None:
                stopped = at + 1
            elif token == close.tokens[0] and stopped is not None:
                death[opened:stopped] = [at + close.thought_dies] * (stopped - opened)
                opened = stopped = None
            continue
        if token == TABLE.eos or (count < close.every if close.every else token != close.tokens[0]):
            continue
        death[begin:at] = [at + close.thought_dies] * (at - begin)
        tokens += close.forced.tolist()
        death[at:] = [NEVER if d == NEVER else at + int(d) for d in close.death]
        since[at:] = [begin if s else 0 for s in close.since]
        if close.role[-1] == Role.OUTPUT:
            if close.replaces_output and output is not None:
                death[output] = len(tokens) - 1
            output = len(tokens) - 1
        begin, count = len(tokens), 0
    return tokens, death, since


@pytest.mark.parametrize(
    "scheme, segments, sampled",
    [
        (Scheme(n_gist=2, exclude_continue=True, instruction="!"), [[100, 101], [102]], [100, 101, 2, 102, 2, 1]),
        (Scheme(n_gist=3, see_current=True), [[100, 101], [102]], [100, 101, 2, 102, 2, 1]),
        (Scheme(level="token", step=2, n_gist=1), [[100, 101, 102, 103, 104]], [100, 101, 102, 103, 104, 1]),
        (Scheme("anllm"), [[100, 101], [102]], [100, 101, 4, 102, 4, 1]),
        (Scheme("memento"), [[7, 40, 8, 9, 41, 10, 42]], [7, 40, 8, 9, 41, 10, 42, 1]),
    ],
    ids=["exclude", "see_current", "token", "anllm", "memento"],
)
def test_a_decoder_that_follows_the_closing_rebuilds_the_training_row(scheme, segments, sampled):
    row = build_row(scheme, TABLE, [30, 31], segments, characters)
    tokens, death, since = replay(scheme, [30, 31], sampled)
    assert (tokens, death, since) == (row.tokens.tolist(), row.death.tolist(), row.since.tolist())


def test_closing_of_vanilla_and_of_the_token_level():
    assert closing(Scheme("vanilla"), TABLE) is None
    close = closing(Scheme(level="token", step=6, n_gist=2), TABLE)
    assert close.tokens.tolist() == [ANY, 4, 5, 3] and close.every == 6 and close.thought_dies == 3


# --- schemes -------------------------------------------------------------------------------------------------------


def test_scheme_fills_in_the_methods_own_values():
    own = lambda scheme: (scheme.gist_tokens, scheme.current_only)
    assert (own(Scheme()), own(Scheme("anllm"))) == ((9, False), (1, True))
    assert own(Scheme("vanilla")) == (0, False) == own(Scheme("memento"))
    assert own(dataclasses.replace(Scheme(), method="anllm")) == (1, True), "what follows from a method is not kept"
    assert Scheme("anllm").explicit == Scheme("anllm", n_gist=1, see_current=True)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"method": "h2o"}, "method"),
        ({"level": "word"}, "level"),
        ({"step": 2}, "step"),
        ({"level": "token", "step": 0}, "step"),
        ({"n_gist": 0}, "n_gist"),
        ({"gist_rule": "both"}, "gist_rule"),
        ({"prompt": "tokens"}, "prompt_step"),
        ({"prompt_step": 2}, "prompt_step"),
        ({"method": "anllm", "n_gist": 2}, "n_gist"),
        ({"method": "anllm", "see_current": False}, "see_current"),
        ({"method": "vanilla", "n_gist": 9}, "n_gist"),
        ({"method": "memento", "prompt": "sentences"}, "prompt"),
        ({"method": "vanilla", "instruction": "x"}, "instruction"),
    ],
)
def test_scheme_refuses_what_it_would_ignore(options, named):
    with pytest.raises(UserError, match=f"scheme.{named}"):
        Scheme(**options)


@pytest.mark.parametrize(
    "scheme, change",
    [(Scheme(n_gist=1), {"trigger": None}), (Scheme(n_gist=1), {"output": None}), (Scheme(n_gist=4), {}),
     (Scheme("memento"), {"memento": None})],
)
def test_a_table_without_a_needed_token_is_refused(scheme, change):
    with pytest.raises(UserError, match="token table"):
        build_row(scheme, dataclasses.replace(TABLE, **change), [30], [[100]], characters)
