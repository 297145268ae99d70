r"""The small base model of the demo, trained from random weights on worked problems.

Why: what the demo teaches is compression, so it must start from a model that reasons already. 0.82 M parameters (4
layers of 128), 3.3 MB of safetensors; the tokenizer comes from launch/train_tokenizer.py.

    python launch/train.py --config=configs/base.py        (or: make base)

and then copy config.json and model.safetensors of runs/base/final to lt_jax/assets/base.

Hardware: two CPU cores, a quarter of an hour, 6.8 M tokens. Result: loss 0.0006, 99.99 % of the tokens of worked
problems right; 99.6 % of 500 problems that it was not trained on.
"""

from ml_collections import ConfigDict

from configs import defaults

# The division table that lcm begins with takes longest to learn.
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
