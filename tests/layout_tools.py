"""Small tokenizers and tables for the layout tests."""

import textwrap

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from lt_jax.layout.special import SpecialTokens

TABLE = SpecialTokens(eos=1, pad=0, trigger=2, output=3, gists=(4, 5, 6), memento=(7, 8, 9, 10), ending="")


def characters(text):
    """One id per character, above all special ids."""
    return [20 + ord(character) for character in text]


def word_tokenizer(words="a b c", size=0):
    """Words and white space as tokens, spelt in bytes as real tokenizers do; `size` fills the vocabulary up."""
    known = ["<unk>", "Ġ", "Ċ", "ĊĊ", *dict.fromkeys(words.split())]
    known += [f"filler{number}" for number in range(size - len(known))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n\n|\s|[^\s]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def with_end(tokenizer, *texts):
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts])
    return tokenizer


def assert_drawn(picture, function):
    """Asserts that the docstring of `function` has this very picture, its lines at the same column."""
    lines = textwrap.dedent(picture).strip("\n").splitlines()
    written = function.__doc__.splitlines()
    for first, line in enumerate(written):
        column = line.find(lines[0])
        while column >= 0:
            shown = [row[column : column + len(lines[0])] for row in written[first : first + len(lines)]]
            if shown == lines:
                return
            column = line.find(lines[0], column + 1)
    raise AssertionError(f"not drawn in {function.__qualname__}:\n{picture}")
