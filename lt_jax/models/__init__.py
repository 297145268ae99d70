"""Decoders: config, parameters, forward pass, LoRA, vocabulary growth, Hugging Face folders in and out."""
