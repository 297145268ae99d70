r"""Problems solved under a fixed KV budget, by every policy, beside full attention.

Why: what does a budget cost in accuracy, and which policy loses least? A row never holds more than budget + buffer
keys; the table says what the caches weigh.

    python launch/evaluate.py --config=configs/eval_budget.py --config.model.path=DIR --config.suite.path=problems.jsonl
    python launch/evaluate.py --config=configs/eval_budget.py --config.model.path=DIR --config.suite.embedded=100 \
        --kv=rkv,snapkv --budget=256 --buffer=64          (other policies, one budget)

H2O and SepLLM have the settings of LightThinker's comparison (appendix C.2), scaled to the budget. LightThinker itself
composes with any of them: give its contender an eviction, too.

Hardware: anything. Result: the shipped base model (lt_jax/assets/base, with every contender's prefix empty) on two CPU
cores, 64 embedded problems, budget 256, buffer 64, in 100 seconds: full attention 100 %, SepLLM 98, H2O 95, R-KV 94,
SnapKV 89, StreamingLLM 77, KeyDiff 67, TOVA 56, random 6, KNorm 2.
"""

from ml_collections import ConfigDict

from configs import eval_math

POLICIES = ("rkv", "snapkv", "h2o", "tova", "keydiff", "knorm", "sepllm", "streaming", "random")


def get_config() -> ConfigDict:
    config = eval_math.get_config()
    vanilla = lambda **settings: ConfigDict({**eval_math.contender("vanilla"), "eviction": ConfigDict(settings)})
    config.contenders = ConfigDict({"vanilla": vanilla()})
    for policy in POLICIES:
        config.contenders[policy] = vanilla(policy=policy, budget=512, buffer=128)
    config.out = "runs/eval_budget"
    return config
