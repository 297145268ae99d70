"""What pyproject.toml cannot say: where `launch` and `configs` go in an installation, see lt_jax/commands."""

from setuptools import find_namespace_packages, setup

INSIDE = {"lt_jax.commands.launch": "launch", "lt_jax.commands.configs": "configs"}

setup(packages=[*find_namespace_packages(include=["lt_jax*"]), *INSIDE], package_dir=INSIDE)
