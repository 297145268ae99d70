"""The small model of `decode.py` and `rl_step.py`, random, and a folder of it that every library loads."""

from __future__ import annotations

from pathlib import Path

import jax

from lt_jax.models import huggingface
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig

SMALL = DecoderConfig(
    vocab_size=2048, hidden=256, intermediate=1024, layers=6, heads=8, kv_heads=2, head_dim=32, model_type="llama"
)


def words(vocab: int):
    """A tokenizer of `vocab` words, "w0" to "w<vocab - 1>", one token each; the last is EOS, the one before padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end, pad = f"w{vocab - 1}", f"w{vocab - 2}"
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, pad_token=pad, padding_side="left")


def write(folder: Path, config: DecoderConfig = SMALL) -> Path:
    """A checkpoint folder of the random model with the tokenizer of words."""
    tokenizer, params = words(config.vocab_size), parameters.init(jax.random.key(0), config)
    ends = dict(eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id)
    return huggingface.save(folder, params, config, tokenizer, **ends)
