"""Samples in, batches out.

    files ─ readers, traces ─ builder (TFDS) ─┐
    tasks (problems made up by index) ────────┴─ sources ─ rows (a laid-out row) ─ pipeline (Grain) ─ batches

`problem` is what a model was asked; `extract` finds the answer in what it wrote, `answers` judges that (`notation` and
`units` read numbers, lists and quantities, `latex` the rest, in a process of its own, a `child`); `stats` measures a
data set.
"""
