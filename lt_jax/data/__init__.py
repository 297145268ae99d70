"""Samples in, batches out.

    files ─ readers, traces ─ builder (TFDS) ─┐
    tasks (problems made up by index) ────────┴─ sources ─ rows (a laid-out row) ─ pipeline (Grain) ─ batches

`answers` judges what a model wrote, `problem` is what it was asked, `stats` measures a data set.
"""
