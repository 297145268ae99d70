r"""The small base model of the demo, trained from random weights on worked problems.

Why: the demo teaches compression, so it must start from a model that can reason already. This one has 0.82 M parameters
(4 layers of width 128, 3.3 MB of safetensors). Its tokenizer was made by launch/train_tokenizer.py.

    python launch/train.py --config=configs/base.py        (or: make base)

Afterwards copy config.json and model.safetensors from runs/base/final to lt_jax/assets/base.

Hardware: two CPU cores need a quarter of an hour for 6.8 M tokens. Result: the loss is 0.0006, and 99.99 % of the
tokens of worked problems are predicted right. All of 500 problems that the model was not trained on are solved (100 %,
interval 99.2 to 100) by

    python launch/evaluate.py --config=configs/eval_math.py --config.model.path=lt_jax/assets/base --method=vanilla \
        --config.contenders.vanilla.prefix= --config.suite.embedded=500 --config.decode.rows=64
"""

from ml_collections import ConfigDict

from configs import defaults

# The division table that lcm begins with takes longest to learn, so lcm comes more often.
FAMILIES = ("gcd", "lcm", "products", "lcm", "simple_equations", "lcm", "count_bits")


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.folder = "runs/base"
    config.model.update(path="lt_jax/assets/base", scratch=True)
    config.data.update(embedded=10_000_000, steps=(3, 14), families=FAMILIES, chat="own")
    config.batches.update(length=2048, batch=1, bins=32, over_length="drop")
    config.scheme.update(method="vanilla", n_gist=0)
    config.train.update(steps=3500, log_every=50, save_every=500)
    config.optim.update(name="muon", learning_rate=5e-3, warmup=50.0, end_fraction=0.02, weight_decay=0.01)
    return config
