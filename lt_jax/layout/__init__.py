"""From text to tokens with roles, targets, positions and lifetimes, for training and for decoding.

    scheme.py    what a method does: one `Scheme` for training rows and for the decode controller
    special.py   the ids of its tokens: a clean table, and the reference's
    closing.py   how a thought is closed, token by token: the definition both sides follow
    prompt.py    prompts, whole or compressed        chat.py      chat templates
    segment.py   text to thoughts                    encode.py    text to ids, nothing added
    build.py     a sample to a `Row` (row.py)        memento.py   Memento's blocks
    limit.py     rows over the maximum length        packing.py   rows to training rows of fixed length

LightThinker's mask options, prompt compression, token level, AnLLM and Memento are here. Left out on purpose: the
reference's `recover` and `hybrid` modes, which train the model to repeat a thought or a prompt from its gists. Their
authors do not use them, and their rows see keys that are already dead, which a lifetime cannot say.
"""
