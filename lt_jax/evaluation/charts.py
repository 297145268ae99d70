"""The metrics of training runs that are known: in which order and group a report shows them, and in which units.

What they are is said where they are made: `rl.metrics.mismatch` and `update`, `rl.step.watched`, `rl.experience`,
`rl.loop.summary`, `rl.validation` and, of supervised runs, `training.run`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Chart:
    """How one metric is shown.

    Attributes:
        metric: its name in metrics.jsonl.
        words: what its axis says: what it is, and its unit.
        factor: from the unit of the file to that of the axis.
        wide: whether it may span powers of ten, so that its axis is logarithmic where it does.
        beside: another metric that is dotted in the same chart.
    """

    metric: str
    words: str
    factor: float = 1.0
    wide: bool = False
    beside: str = ""


def _share(metric: str, words: str) -> Chart:
    return Chart(metric, f"% of {words}", 100.0)


def _wide(metric: str, words: str) -> Chart:
    return Chart(metric, words, wide=True)


def _seconds(part: str, words: str) -> Chart:
    return Chart(f"seconds_{part}", f"{words}, s a step")


GROUPS: dict[str, tuple[Chart, ...]] = {
    "Reward and validation": (
        Chart("reward", "mean over the responses of a rollout"),
        Chart("eval_dense_reward", "greedy, held out, every key kept"),
        Chart("eval_sparse_reward", "greedy, held out, within the budget"),
        Chart("eval_loss", "nats per token, held out"),
        _share("eval_accuracy", "next tokens right, held out"),
        Chart("reward_std", "standard deviation over the responses"),
        Chart("eval_dense_tokens", "tokens of an answer, every key kept"),
        Chart("eval_sparse_tokens", "tokens of an answer, within the budget"),
    ),
    "Mismatch of sampler and learner": (
        _wide("kl", "KL(sampler || old), k1, nats per token"),
        _wide("k3_kl", "KL(sampler || old), k3, nats per token"),
        Chart("agreement_q05", "5th percentile of min(xi, 1/xi)"),
        _wide("xi_q01", "1st percentile of xi over tokens"),
        _wide("xi_q05", "5th percentile of xi over tokens"),
        Chart("xi_q50", "median of xi over tokens"),
        _wide("xi_q95", "95th percentile of xi over tokens"),
        _wide("xi_q99", "99th percentile of xi over tokens"),
        _wide("logprob_abs_diff", "mean |log xi| of a token, nats"),
        _share("catastrophic_token_fraction", "tokens with xi < 1e-4"),
        _share("catastrophic_seq_fraction", "responses with such a token"),
        Chart("training_log_ppl", "-log-prob by the learner, nats per token"),
        Chart("rollout_log_ppl", "-log-prob by the sampler, nats per token"),
        Chart("log_ppl_diff", "learner - sampler, nats per token"),
        Chart("log_ppl_abs_diff", "|learner - sampler|, nats per token"),
        _wide("chi2_token", "mean of xi^2 - 1, tokens"),
        _wide("chi2_seq", "mean of xi^2 - 1, whole responses"),
    ),
    "Correction": (
        _share("rejected", "responses"),
        _share("mask_fraction", "tokens that no criterion kept"),
        Chart("effective_sample_size", "% of equal weights' sample size", 100.0),
        _wide("weight_after_bound", "mean weight of a token, as used"),
        _wide("weight_before_bound", "mean weight of a token, unbounded"),
        _share("truncate_fraction", "tokens above the upper bound"),
        _share("mask_fraction_low", "tokens below the band"),
        _share("mask_fraction_high", "tokens above the band"),
        Chart("batch_norm_factor", "what weights were divided by"),
    ),
    "Update": (
        _wide("loss", "as minimised"),
        _share("accuracy", "next tokens right"),
        _share("clip_fraction", "tokens without gradient, clipped"),
        Chart("entropy", "nats per token"),
        _wide("grad_norm", "norm of the gradient"),
        _wide("reference_kl", "KL to the reference, nats per token"),
        _wide("dense_kl", "KL(dense || replay), nats per token"),
        _wide("old_kl", "KL(old || new), k1, nats per token"),
        Chart("ratio", "mean of new / old probability, tokens"),
        Chart("policy_loss", "part of the loss"),
        Chart("kl_loss", "part of the loss: KL to the reference"),
        Chart("entropy_loss", "part of the loss: entropy"),
        Chart("dense_kl_loss", "part of the loss: KL(dense || replay)"),
        Chart("advantage_abs", "mean |advantage|"),
        Chart("tokens_learned", "tokens of a step with a gradient"),
        _wide("learning_rate", "of the optimizer"),
    ),
    "Responses": (
        Chart("response_tokens", "mean tokens of a response"),
        Chart("response_longest", "tokens of the longest response"),
        _share("truncation_rate", "responses cut off at a limit"),
        _share("repetition_rate", "responses that mostly repeat"),
        _share("without_signal", "responses with groups of equal reward"),
        Chart("resampled", "groups asked again for a rollout"),
        Chart("reward_failures", "responses whose reward failed"),
        Chart("rewards_late", "responses whose reward came too late"),
        Chart("broken_responses", "responses ended by logits that were no numbers"),
        Chart("problems_asked", "problems since the start"),
        Chart("prompts_left_out", "prompts too long, since the start"),
        Chart("compressions", "thoughts compressed in a response"),
    ),
    "Cost": (
        Chart("cache_bytes", "MB of the cache; dotted: every key kept", 1e-6, beside="cache_bytes_dense"),
        Chart("record_bytes", "MB of recorded deaths", 1e-6),
        Chart("budget", "keys a head keeps"),
        Chart("rollout_tokens_per_second", "tokens/s sampled"),
        Chart("update_tokens_per_second", "tokens/s learned from, with log-probs"),
        Chart("tokens_per_second", "tokens/s of the whole step"),
        Chart("seconds", "s a step"),
        _seconds("rollout", "rollout"),
        _seconds("reward", "waiting for rewards, and metrics"),
        _seconds("logps", "log-probs"),
        _seconds("update", "update"),
        _seconds("compile", "compiling, beside all that"),
        _share("share_rollout", "the time of a step"),
        Chart("tokens", "tokens of a step, a prompt for each response"),
        Chart("responses_per_row", "responses learned from behind one prompt"),
        Chart("trained_tokens", "tokens of a step with a target"),
    ),
}
# Names that are made of a part and what it is of: the first that a name begins with says where it belongs.
BEGINNINGS = {"reward_": (0, "part of the reward"), "eval_": (0, "held out"), "seconds_": (5, "s a step"),
              "memory_": (4, "mean of a trajectory")}  # fmt: skip
OTHERS = "Others"  # what is known to nobody here


def grouped(names: Iterable[str]) -> dict[str, list[Chart]]:
    """The charts of metrics of these names: {group: charts}, groups without any left out. What is not known comes last.

    A metric that is shown beside another has no chart of its own, unless that one is missing.
    """
    names = dict.fromkeys(names)
    found = {title: [chart for chart in charts if chart.metric in names] for title, charts in GROUPS.items()}
    shown = {name for charts in found.values() for chart in charts for name in (chart.metric, chart.beside)}
    found[OTHERS] = []
    for name in names:
        if name in shown:
            continue
        start = next((start for start in BEGINNINGS if name.startswith(start)), None)
        place, words = BEGINNINGS[start] if start else (-1, "")
        list(found.values())[place].append(Chart(name, words, wide=place == -1))
    return {title: charts for title, charts in found.items() if charts}
