"""The settings of a run of reinforcement learning, and the presets that name an arm of Sparse-RL.

What differs: paper and release are presets here. Two go beyond them: `replay`, where the learner sees what the sampler
saw, and `adaptive`, where the budget grows when sampler and learner disagree too much.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

from lt_jax.cache.policies import published
from lt_jax.cache.policies.config import POLICIES
from lt_jax.errors import UserError
from lt_jax.models.config import LoraConfig
from lt_jax.rl.advantages import ADVANTAGES
from lt_jax.rl.losses import LossConfig
from lt_jax.rl.mismatch_config import PRESETS as CORRECTIONS
from lt_jax.rl.mismatch_config import MismatchConfig
from lt_jax.rl.rewards import RewardConfig
from lt_jax.training.config import TrainConfig, check_run

GROWTH = (1.0, 1.5, 2.0, 3.0, 4.0)  # the budgets of `adaptive`, as multiples of the first
LEAST_AGREEMENT = 0.5  # of `adaptive`, unless said otherwise


@dataclasses.dataclass(frozen=True)
class ProblemsConfig:
    """What is asked.

    Attributes:
        paths: files of problems, or folders of them, see `data.suites.from_files`.
        format: a key of `data.traces.FORMATS`; None recognises it by the fields of the records.
        held_out: how many problems are kept for validation and not trained on.
        embedded: how many of the library's own problems to ask in place of files.
        steps, families: of those, see `data.tasks.Problems`.
        chat, system, prefix, suffix: see `data.prompts.Prompter`; None is what the model's folder says.
    """

    paths: tuple[str, ...] = ()
    format: str | None = None
    held_out: int = 0
    embedded: int = 0
    steps: tuple[int, int] = (6, 12)
    families: tuple[str, ...] = ()
    chat: str | None = None
    system: str | None = None
    prefix: str | None = None
    suffix: str | None = None

    def __post_init__(self):
        if any(self.paths) == bool(self.embedded):
            given = "both data.path and data.embedded are given" if self.embedded else "data.path is empty"
            raise UserError(
                f"{given}; give a file of problems with answers, --config.data.path=problems.jsonl, or a number of "
                "embedded problems, --config.data.embedded=100000"
            )
        for name in ("held_out", "embedded"):
            if getattr(self, name) < 0:
                raise UserError(f"data.{name} is {getattr(self, name)}; it must be 0 or more")
        if self.embedded and self.format is not None:
            raise UserError(f"data.format is {self.format!r}, and embedded problems have none; leave it out")
        if self.families and not self.embedded:
            raise UserError(f"data.families is {self.families}, which chooses among the embedded problems; give "
                            "data.embedded, or leave it out")  # fmt: skip
        if len(self.steps) != 2:
            raise UserError(f"data.steps is {self.steps}; it is two numbers, the fewest and the most steps of problems")


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled. The only way to sample is a temperature: with top-k or top-p the log-probs would not
    be those of any policy that could be trained.

    Attributes:
        prompts: problems of a rollout. group: responses to each, 2 or more.
        max_prompt: tokens of the longest prompt; a problem with a longer one is left out and counted.
        max_new: the most tokens that are sampled for a response.
        temperature: of sampling, and of all log-probs.
        rows: responses that are sampled side by side; 0 is all of a rollout.
        block_steps: see `DecodeConfig`.
        eviction: a KV budget, the arguments of `cache.policies.published` (policy, budget, buffer, ...), or None. Its
            policy is not "full", which has a budget and evicts nothing: its rows would end there.
        budgets: larger budgets that are gone on to one by one, whenever the 5th percentile of the agreement between
            sampler and learner (`metrics.mismatch`) is below `least_agreement`. A run needs both, or neither.
        max_thought: a thought of this many tokens is compressed by force; None sets no limit.
        resample: how many times more problems are asked, in place of those whose responses all got the same reward
            (DAPO's dynamic sampling). What is still missing then is filled up with such groups, without advantage.
        overlong: tokens before `max_new` from which on a response is punished for its length (DAPO); 0 does not.
    """

    prompts: int = 8
    group: int = 8
    max_prompt: int = 256
    max_new: int = 512
    temperature: float = 1.0
    rows: int = 0
    block_steps: int = 32
    eviction: Mapping | None = None
    budgets: tuple[int, ...] = ()
    least_agreement: float = 0.0
    max_thought: int | None = None
    resample: int = 0
    overlong: int = 0

    def __post_init__(self):
        object.__setattr__(self, "budgets", tuple(self.budgets))
        for name in ("prompts", "max_prompt", "max_new", "block_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"rollout.{name} is {getattr(self, name)}; it must be 1 or more")
        if self.group < 2:
            raise UserError(
                f"rollout.group is {self.group}; a response is compared with the others of its group, so there must be "
                "2 or more"
            )
        if not 0 < self.temperature < float("inf"):
            raise UserError(
                f"rollout.temperature is {self.temperature}; it must be above 0, or all of a group is alike"
            )
        if min(self.rows, self.resample, self.overlong) < 0:
            raise UserError("rollout: rows, resample and overlong must not be negative")
        if self.overlong >= self.max_new:
            raise UserError(f"rollout.overlong is {self.overlong}; it must be below rollout.max_new ({self.max_new})")
        if self.max_thought is not None and self.max_thought < 1:
            raise UserError(f"rollout.max_thought is {self.max_thought}; it must be 1 or more, or 0 for no limit")
        self._check_eviction()

    def _check_eviction(self):
        if self.eviction is None:
            if self.budgets or self.least_agreement:
                raise UserError("rollout.budgets and rollout.least_agreement are for a KV budget; set rollout.kv too")
            return
        policy, first = self.eviction["policy"], self.eviction["budget"]
        evicting = [name for name in POLICIES if name != "full"]
        if policy not in evicting:
            raise UserError(f"rollout.kv is {policy!r}; it is one of {', '.join(evicting)}, or empty to keep every key")
        try:
            published(**self.eviction, **({"separators": (0,)} if policy == "sepllm" else {}))
        except UserError as error:  # which begins with the name of the setting
            raise UserError(f"rollout.{error}") from None
        if not 0 <= self.least_agreement < 1:
            raise UserError(f"rollout.least_agreement is {self.least_agreement}; it must be above 0 and below 1")
        numbers = all(isinstance(budget, int) for budget in (first, *self.budgets))
        if self.budgets and not (numbers and all(a < b for a, b in itertools.pairwise((first, *self.budgets)))):
            raise UserError(f"rollout.budgets is {self.budgets}; each must be above the one before, and above "
                            f"rollout.budget ({first})")  # fmt: skip

    @property
    def responses(self) -> int:
        """Responses of a rollout."""
        return self.prompts * self.group


@dataclasses.dataclass(frozen=True)
class RlConfig:
    """One run.

    Attributes:
        folder: of the run. If it has checkpoints of the same run, the newest one is continued.
        model: the checkpoint folder that training starts from.
        method: how it writes; None is as it was trained, see `lt_jax.load`.
        problems, rollout, reward, mismatch, loss, train: see each. `train.steps` are rollouts, each with its updates.
        advantage: a key of `advantages.ADVANTAGES`; None is that of the loss's own paper.
        count_rejected: whether rejected responses are part of their group when advantages are made, as in the release.
        replay: the learner sees what the sampler saw: its log-probs are computed under the recorded deaths. Otherwise
            it sees all that the method keeps.
        dense_kl: weight of KL(dense || replay) over the whole vocabulary, with the replaying policy held still, so that
            the model stays as good without a budget.
        updates: of the optimizer from each rollout, each on a part of its groups.
        dtype, lora, tensorboard, wandb, export_dtype: see `training.sft_config.SftConfig`.
    """

    folder: str
    model: str
    problems: ProblemsConfig
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    advantage: str | None = None
    count_rejected: bool = True
    mismatch: MismatchConfig = MismatchConfig()
    replay: bool = False
    dense_kl: float = 0.0
    loss: LossConfig = LossConfig()
    updates: int = 1
    train: TrainConfig = TrainConfig()
    method: str | None = None
    lora: LoraConfig | None = None
    dtype: str = "float32"
    tensorboard: bool = False
    wandb: str | None = None
    export_dtype: str | None = None

    def __post_init__(self):
        check_run(self.folder, self.model, self.lora is not None, self.train.optim)
        if self.advantage is None:
            own = self.loss.kind if self.loss.kind in ADVANTAGES else "grpo"
            object.__setattr__(self, "advantage", own)
        if self.advantage not in ADVANTAGES:
            raise UserError(f"advantage is {self.advantage!r}; it is one of {', '.join(ADVANTAGES)}")
        if self.train.epochs or not self.train.steps:
            raise UserError("train.steps is the number of rollouts and must be given; train.epochs must be 0")
        if self.updates < 1 or self.rollout.prompts % self.updates:
            raise UserError(
                f"updates is {self.updates}, which does not divide rollout.prompts ({self.rollout.prompts}): an update "
                "is made from whole groups"
            )
        each = self.rollout.responses // self.updates
        if each % self.train.accumulate:
            raise UserError(
                f"train.accumulate is {self.train.accumulate}, which does not divide the {each} responses of an update"
            )
        if bool(self.rollout.budgets) != bool(self.rollout.least_agreement):
            raise UserError(
                f"rollout.budgets is {self.rollout.budgets} and rollout.least_agreement is "
                f"{self.rollout.least_agreement}; give both, or neither, or take preset 'adaptive'"
            )
        if self.replay and self.rollout.budgets:
            raise UserError("rollout.budgets are for a learner that sees more than the sampler: under preset 'replay' "
                            "the two agree, and the budget would never grow")  # fmt: skip
        if self.replay and self.rollout.eviction is None:
            raise UserError("replay is set, but without a KV budget the sampler sees what the learner sees; set "
                            "rollout.kv, or take another preset")  # fmt: skip
        if not 0 <= self.dense_kl < float("inf") or (self.dense_kl and not self.replay):
            raise UserError(f"dense_kl is {self.dense_kl}; it must be a number, 0 or more, and is for replay only")
        if self.train.eval_every and not self.problems.held_out:
            raise UserError(
                f"train.eval_every is {self.train.eval_every} and data.held_out is 0: there is nothing to evaluate on"
            )

    @property
    def fresh(self) -> bool:
        """Whether the policy before an update is what the update computes anyway, so that no pass of its own is needed:
        it is the only one from its rollout, and what it does with a row depends on no other row's xi."""
        if self.updates > 1 or self.mismatch == MismatchConfig():
            return self.updates == 1
        counted = self.count_rejected and self.loss.count_rejected and self.loss.kind != "dapo"
        return counted and not self.mismatch.rollout_is_batch_normalize


PRESETS = (*CORRECTIONS, "replay", "adaptive")


def preset(name: str, rollout: RolloutConfig) -> dict:
    """The settings of `RlConfig` that an arm is: mismatch, replay and rollout.

    naive corrects nothing. paper and release are in `mismatch_config`. replay needs no correction: the policy that is
    trained is the sampler's. adaptive is the paper's correction and a budget that grows (`GROWTH`, unless
    `rollout.budgets` are given, below `LEAST_AGREEMENT`, unless `rollout.least_agreement` is).

    Raises:
        UserError: no such preset, or one for a KV budget without one.
    """
    if name in CORRECTIONS:
        return {"mismatch": CORRECTIONS[name], "rollout": rollout, "replay": False}
    if name not in PRESETS:
        raise UserError(f"preset is {name!r}; it is one of {', '.join(PRESETS)}")
    if rollout.eviction is None:
        raise UserError(f"preset {name!r} is for a KV budget; set rollout.kv, or take another preset")
    if name == "replay":
        return {"mismatch": CORRECTIONS["naive"], "rollout": rollout, "replay": True}
    if not rollout.budgets:
        first = rollout.eviction["budget"]
        if isinstance(first, tuple):
            raise UserError("preset 'adaptive' needs rollout.budgets where every layer has a budget of its own")
        rollout = dataclasses.replace(rollout, budgets=tuple(round(first * factor) for factor in GROWTH[1:]))
    rollout = dataclasses.replace(rollout, least_agreement=rollout.least_agreement or LEAST_AGREEMENT)
    return {"mismatch": CORRECTIONS["paper"], "rollout": rollout, "replay": False}
