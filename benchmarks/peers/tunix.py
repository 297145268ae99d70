"""tunix's side of `benchmarks/rl_step.py`: its `GRPOLearner` with its own ("vanilla") rollout engine.

Where there was a choice, the faster one was taken: all responses are sampled as one batch, and the update is cut into
four (`--pieces=tunix=1` does not cut it, and took a little more of the processors' time); a cache of exactly the tokens
there are; plain sampling (top-p 1 and no top-k, which leaves out the sorting); no checkpoints, no logging, no reference
(beta 0); one iteration of a rollout, so that tunix leaves out the log-probs before the update; no rematerialisation,
and the step compiled with its graph cached, which are its defaults. float32, as on all sides. No token ends a response:
`eos_tokens` is an id that the model does not have.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from transformers import AutoTokenizer
from tunix.models.llama3.model import ModelConfig
from tunix.models.llama3.params import create_model_from_safe_tensors
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig

from benchmarks.peers.task import RATE, Turns, given, score

TASK = given()
TURNS = Turns("google-tunix", "jax", "jaxlib", "flax")


class Timed(RLCluster):
    """The cluster, which tells how long generation took."""

    def generate(self, *args, **kwargs):
        begin = time.perf_counter()
        found = super().generate(*args, **kwargs)
        self.took, self.tokens = time.perf_counter() - begin, sum(map(len, found.tokens))
        return found


def settings(folder: Path) -> ModelConfig:
    """The model's sizes, from its config.json."""
    values = json.loads((folder / "config.json").read_text())
    theta = values.get("rope_theta") or values["rope_parameters"]["rope_theta"]
    return ModelConfig(
        num_layers=values["num_hidden_layers"],
        vocab_size=values["vocab_size"],
        embed_dim=values["hidden_size"],
        hidden_dim=values["intermediate_size"],
        num_heads=values["num_attention_heads"],
        head_dim=values["head_dim"],
        num_kv_heads=values["num_key_value_heads"],
        rope_theta=int(theta),
        norm_eps=values["rms_norm_eps"],
        weight_tying=values["tie_word_embeddings"],
    )


def batches(model: nnx.Module) -> Iterator[dict]:
    """Batches of prompts, each when its turn has come and all work before it is done."""
    questions = TASK.questions()
    while True:
        for begin in range(0, len(questions) - TASK.prompts + 1, TASK.prompts):
            jax.block_until_ready(nnx.state(model))
            TURNS.wait()
            yield {"prompts": np.array(questions[begin : begin + TASK.prompts])}


def main():
    sizes = settings(Path(TASK.model))
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with mesh:
        model = create_model_from_safe_tensors(TASK.model, sizes, mesh, dtype=jnp.float32)
    cluster = Timed(
        actor=model,
        tokenizer=AutoTokenizer.from_pretrained(TASK.model),
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys((Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh),
            rollout_engine="vanilla",
            training_config=RLTrainingConfig(
                actor_optimizer=optax.adamw(RATE),
                eval_every_n_steps=10**6,
                max_steps=10**6,
                mini_batch_size=TASK.prompts,
                train_micro_batch_size=TASK.prompts // TASK.pieces,
                rollout_micro_batch_size=TASK.prompts,
                compute_logps_micro_batch_size=TASK.prompts,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=TASK.new,
                max_prompt_length=TASK.prompt,
                kv_cache_size=TASK.prompt + TASK.new,
                temperature=1.0,
                top_p=1.0,
                top_k=None,
                eos_tokens=[sizes.vocab_size],
            ),
        ),
    )

    def rewards(prompts: list[str], completions: list[str], **_) -> list[float]:
        found = [score(None, text) for text in completions]
        TURNS.sampled(cluster.took, cluster.tokens, found)
        return found

    learner = GRPOLearner(cluster, GRPOConfig(num_generations=TASK.group, num_iterations=1, beta=0.0), rewards)
    learner.train(batches(cluster.actor_trainer.model))


if __name__ == "__main__":
    main()
