"""TRL's side of `benchmarks/rl_step.py`: its `GRPOTrainer`, with generation by `transformers` on the CPU.

Where there was a choice, the faster one was taken: all responses are generated as one batch, and the update is one
batch too (`--pieces=trl=8` cuts it, and took a fifth more of the processors' time); no gradient checkpointing (TRL's
default is to); no logging, no saving, no reference (beta 0); one update of a rollout, so that TRL leaves out the
log-probs before the update; fused AdamW and `sdpa` attention, which are its defaults; data in this process. float32 in
place of its default bfloat16, as on all sides. There is no vLLM: it is not for such a machine. EOS is barred by
`min_new_tokens`. The loss is `grpo`; the others cost the same.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.peers.task import RATE, Turns, given, score

TASK = given()
TURNS = Turns("trl", "torch", "transformers", "accelerate")


class Waiting(TrainerCallback):
    """Waits for its turn before each step; the step before is done by then."""

    def on_step_begin(self, args, state, control, **kwargs):
        TURNS.wait()


class Timed(GRPOTrainer):
    """The trainer, which tells how long generation took."""

    def _generate(self, prompts: list):
        begin = time.perf_counter()
        found = super()._generate(prompts)
        self.took, self.tokens = time.perf_counter() - begin, sum(map(len, found[1]))
        return found

    def _calculate_rewards(self, *args):
        rewards = super()._calculate_rewards(*args)
        TURNS.sampled(self.took, self.tokens, rewards[:, 0].tolist())
        return rewards


def rewards(completions: list[str], **_) -> list[float]:
    return [score(None, text) for text in completions]


def main():
    torch.set_num_threads(TASK.threads)
    config = GRPOConfig(
        output_dir=str(Path(TASK.scratch) / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=TASK.responses // TASK.pieces,
        gradient_accumulation_steps=TASK.pieces,
        num_generations=TASK.group,
        max_completion_length=TASK.new,
        generation_kwargs={"min_new_tokens": TASK.new},
        beta=0.0,
        loss_type="grpo",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_steps=10**6,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    model = AutoModelForCausalLM.from_pretrained(TASK.model, dtype=torch.float32)
    Timed(
        model=model,
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": TASK.questions()}),
        processing_class=AutoTokenizer.from_pretrained(TASK.model, padding_side="left"),
        callbacks=[Waiting()],
    ).train()


if __name__ == "__main__":
    main()
