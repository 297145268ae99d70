"""Token tables: the clean one and the released checkpoints' ids. Text goes to ids with nothing added."""

import json

import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from lt_jax.errors import UserError
from lt_jax.layout.build import build_row
from lt_jax.layout.chat import llama
from lt_jax.layout.encode import encoder
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens, default_table, reference_table
from lt_jax.layout.tokenizer import load_tokenizer
from tests.layout_tools import with_end, word_tokenizer

WORDS = "continue to output according previous content compress 0 1 2 a b c . block start end summary"


def small():
    return with_end(word_tokenizer(WORDS), "<eos>")


@pytest.fixture(scope="module")
def sized():
    """Tokenizers with as many tokens as the real ones have, as JSON."""
    qwen = with_end(word_tokenizer(WORDS, 151_664), "<|im_end|>")
    return {"qwen": qwen.to_str(), "llama": with_end(word_tokenizer(WORDS, 128_255), "<|eot_id|>").to_str()}


@pytest.mark.parametrize("family, base, n_gist, total", [("qwen", 151_665, 9, 151_682), ("llama", 128_256, 7, 128_271)])
def test_reference_table_has_the_released_ids(sized, family, base, n_gist, total):
    tokenizer = Tokenizer.from_str(sized[family])
    table = reference_table(tokenizer, family)
    special = table.special
    assert (special.trigger, special.output) == (base, base + 1)
    assert special.gists == tuple(range(base + 8, base + 8 + n_gist))
    names = ["<|splitter|>", "<|continue|>", "<|recover|>", "<|begin_of_thought|>", "<|end_of_thought|>",
             "<|begin_of_solution|>", "<|end_of_solution|>", "\n\n", "<|o_0|>"]
    assert [tokenizer.token_to_id(name) for name in names] == list(range(base, base + 9))
    assert tokenizer.get_vocab_size() == total
    assert [number for number, _ in table.new] == list(range(base, total))
    assert encoder(tokenizer)("a\n\nb")[1] == base + 7  # the reference takes empty lines over
    again = reference_table(tokenizer, family, add=False)
    assert again.special == special and again.new == ()


def test_reference_rows_are_described_before_the_empty_line_is_taken_over(sized):
    tokenizer = Tokenizer.from_str(sized["qwen"])
    native = encoder(tokenizer)("\n\n")
    table = reference_table(tokenizer, "qwen")
    described = {number: pieces for (number, _), pieces in zip(table.new, table.pieces, strict=True)}
    assert described[151_665] == described[151_672] == tuple(native)
    assert all(pieces and max(pieces) < 151_665 for pieces in table.pieces)


def test_reference_table_wants_its_own_tokenizer(sized):
    with pytest.raises(UserError, match="needs one with 151,665"):
        reference_table(with_end(small(), "<|im_end|>"), "qwen")
    with pytest.raises(UserError, match="reference table 'gpt'"):
        reference_table(small(), "gpt")
    with pytest.raises(UserError, match="no token '<|splitter|>'".replace("|", r"\|")):
        reference_table(Tokenizer.from_str(sized["llama"]), "llama", add=False)


def test_default_table_adds_only_what_the_scheme_needs_and_leaves_empty_lines_alone():
    tokenizer = small()
    before, native = tokenizer.get_vocab_size(), encoder(tokenizer)("a\n\nb")
    table = default_table(tokenizer, Scheme(n_gist=2), "<eos>")
    special = table.special
    assert (special.trigger, special.output, special.gists) == (before, before + 1, (before + 2, before + 3))
    assert special.pad == special.eos == before - 1 and special.memento is None and special.ending == "\n"
    assert tokenizer.get_vocab_size() == before + 4
    assert encoder(tokenizer)("a\n\nb") == native
    assert table.new[0] == (before, "\n\n") and table.pieces[0] == (native[1],)
    assert table.new[3] == (before + 3, "compress output 1") and len(table.pieces[3]) == 5


@pytest.mark.parametrize(
    "scheme, added",
    [(Scheme("vanilla"), 0), (Scheme("anllm"), 1), (Scheme("memento"), 4), (Scheme(level="token", n_gist=2), 3)],
)
def test_default_tables_of_the_other_methods(scheme, added):
    tokenizer = small()
    table = default_table(tokenizer, scheme, "<eos>", pad="a")
    assert len(table.new) == added
    table.special.check(scheme)
    assert table.special.pad == tokenizer.token_to_id("a")
    assert (table.special.trigger is None) and (table.special.memento is None) == (scheme.method != "memento")


def test_a_native_trigger_adds_no_token_and_takes_the_newlines_place():
    tokenizer = small()
    scheme = Scheme(n_gist=1)
    special = default_table(tokenizer, scheme, "<eos>", trigger="\n\n").special
    assert [special.trigger] == encoder(tokenizer)("\n\n") and special.ending == ""
    row = build_row(scheme, special, "a", ["b\n\n", "c a"], encoder(tokenizer), add_eos=False)
    shown = [token for token, role in zip(row.tokens, row.letters, strict=True) if role in "sw"]
    assert tokenizer.decode(shown) == "b\n\nc a\n\n"
    with pytest.raises(UserError, match="trigger 'a b' is 3 tokens"):
        default_table(tokenizer, scheme, "<eos>", trigger="a b")


def test_a_tokenizer_without_the_tokens_is_refused_and_one_with_them_is_read():
    tokenizer, scheme = small(), Scheme(n_gist=2)
    with pytest.raises(UserError, match="no token"):
        default_table(tokenizer, scheme, "<eos>", add=False)
    assert tokenizer.token_to_id("<|continue|>") is None
    made = default_table(tokenizer, scheme, "<eos>")
    assert default_table(Tokenizer.from_str(tokenizer.to_str()), scheme, "<eos>", add=False).special == made.special


def test_transformers_tokenizers_grow_alike(tmp_path):
    plain, wrapped = small(), PreTrainedTokenizerFast(tokenizer_object=small(), eos_token="<eos>")
    scheme = Scheme(n_gist=2)
    ours, theirs = default_table(plain, scheme, "<eos>"), default_table(wrapped, scheme, "<eos>")
    assert ours == theirs and len(wrapped) == plain.get_vocab_size()
    assert wrapped.decode([theirs.special.trigger, *encoder(wrapped)("a")], skip_special_tokens=True) == "a"
    wrapped.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert default_table(loaded, scheme, "<eos>", add=False).special == ours.special


def test_tables_survive_json():
    special = SpecialTokens(1, 0, 2, 3, (4, 5), (7, 8, 9, 10), None)
    assert SpecialTokens.from_dict(json.loads(json.dumps(special.to_dict()))) == special
    with pytest.raises(UserError, match="unknown key 'bos'"):
        SpecialTokens.from_dict({"eos": 1, "pad": 1, "bos": 2})


@pytest.mark.parametrize("wrap", [False, True])
def test_no_bos_slips_into_segments(wrap):
    """Llama's post-processor puts a BOS before all it tokenises; a row has the template's one only."""
    tokenizer = with_end(word_tokenizer(WORDS), "<eos>", "<|begin_of_text|>", "<|eot_id|>")
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing("<|begin_of_text|> $A", None, [("<|begin_of_text|>", bos)])
    assert tokenizer.encode("a").ids[0] == bos
    scheme = Scheme(n_gist=2, instruction="b")
    special = default_table(tokenizer, scheme, "<|eot_id|>").special
    encode = encoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer) if wrap else tokenizer)
    row = build_row(scheme, special, llama("a b", "c"), ["a b .", "c ."], encode)
    assert (row.tokens == bos).sum() == 1 and row.tokens[0] == bos


@pytest.mark.parametrize("wrap", [False, True])
def test_saved_padding_and_truncation_spoil_no_start_rows_and_no_texts(wrap, tmp_path):
    """Somebody's batches were cut to 3 tokens and filled up to 4: no text that we encode is."""
    tokenizer = small()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=4, pad_id=tokenizer.token_to_id("<eos>"), pad_token="<eos>", direction="left")
    if wrap:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(tmp_path / "saved")
        tokenizer.save(str(tmp_path / "saved" / "tokenizer.json"))
        tokenizer = load_tokenizer(tmp_path / "saved")
    want = default_table(small(), Scheme(n_gist=2), "<eos>")
    assert default_table(tokenizer, Scheme(n_gist=2), "<eos>") == want and want.pieces[2] != want.pieces[3]
    assert encoder(tokenizer)("a b c . a") == encoder(small())("a b c . a")
    if wrap:
        tokenizer.save_pretrained(tmp_path / "again")
        saved = Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
        assert saved.padding is None and saved.truncation is None
    again = small()
    again.enable_truncation(1)
    assert len(encoder(again)("a b")) == 3


def test_the_tokenizer_names_the_tokens_that_rows_are_ended_with():
    """But for ordinary tokens: naming them would cut them out of every text."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=with_end(small(), "<end>", "<pad>"), eos_token="<eos>")
    table = default_table(tokenizer, Scheme("vanilla"), "<end>")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<end>", None) and table.special.pad == table.special.eos
    default_table(tokenizer, Scheme("vanilla"), "<end>", pad="<pad>")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<end>", "<pad>")
    table = default_table(tokenizer, Scheme("vanilla"), ".")
    assert tokenizer.eos_token == "<end>" and table.special.eos == tokenizer.convert_tokens_to_ids(".")
