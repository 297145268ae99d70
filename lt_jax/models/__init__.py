"""Decoders: what they are, their parameters, the forward pass, and the way in and out of Hugging Face folders.

    config.py       `DecoderConfig`: sizes and switches, frozen and hashable
    params.py       the parameters, defined once: shapes, logical axes, initial values, counts
    decoder.py      the forward pass as pure functions, whole or in halves of a layer (decoding); NNX `Decoder`
    linear.py       the one way to a matrix product, with bias and adapter
    rope.py         rotary positions, with Llama 3 and YaRN scaling
    lora.py         low-rank adapters: add, merge, what is trained
    vocabulary.py   rows for new tokens
    presets.py      sizes by name
    safetensors.py  the file format
    huggingface.py  checkpoint folders in and out, with hf_config.py and hf_rope.py (config.json), hf_ends.py (what
                    ends a row) and hf_tokenizer.py
"""
