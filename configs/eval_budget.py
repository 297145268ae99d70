r"""Problems solved inside a fixed KV budget, under every policy, and with full attention for comparison.

Why: what does a budget cost in accuracy, and which policy loses least? Under a budget, a row of the cache never holds
more than budget + buffer keys. The table also says how much memory the cache of a row takes.

    python launch/evaluate.py --config=configs/eval_budget.py --config.model.path=DIR --config.suite.path=problems.jsonl
    python launch/evaluate.py --config=configs/eval_budget.py --config.model.path=DIR --config.suite.embedded=100 \
        --kv=rkv,snapkv --budget=256 --buffer=64          (other policies, one budget)

H2O and SepLLM have the settings with which the LightThinker paper compares itself (appendix C.2), scaled to the budget.
LightThinker can be combined with any policy: give its contender an `eviction` as well.

Hardware: anything. Result: with the base model that comes with the library, two CPU cores need 140 seconds for

    python launch/evaluate.py --config=configs/eval_budget.py --config.model.path=lt_jax/assets/base \
        --config.suite.embedded=64 --config.contenders.vanilla.prefix= --budget=256 --buffer=64 \
        --kv=rkv,snapkv,h2o,tova,keydiff,knorm,sepllm,streaming,random

Full attention solves 100 %, SepLLM 98, H2O 95, R-KV 94, SnapKV 89, StreamingLLM 77, KeyDiff 67, TOVA 56, random 6 and
KNorm 2.
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
