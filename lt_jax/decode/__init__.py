"""Batched decoding: the compiled block, the rows' state machines, and the engine that feeds them."""

from lt_jax.decode.config import Completion, DecodeConfig, Request
from lt_jax.decode.engine import Engine
from lt_jax.decode.sample import Sampling
from lt_jax.decode.stream import TextStreamer

__all__ = ["Completion", "DecodeConfig", "Engine", "Request", "Sampling", "TextStreamer"]
