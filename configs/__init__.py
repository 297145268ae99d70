"""Configs, a file for each: `get_config()`, and a docstring that says why, how, on what and with what result."""
