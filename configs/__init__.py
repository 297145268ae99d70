"""The configs, one file each: `get_config()`, and a docstring that says why, how to run it, and what to expect."""
