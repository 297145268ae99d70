"""Training: batches in, a trained model out.

    config.py      what a run is              sft.py         folder and traces in, trained folder out
    mesh.py        devices, the rules table   run.py         the loop: log, evaluate, save, resume, stop
    state.py       what a step changes        checkpoint.py  what is kept of it on disk
    step.py        one compiled step          metrics.py     JSONL, TensorBoard, W&B, the terminal
    loss.py        loss in chunks of tokens   export.py      a run's newest checkpoint as a folder
    optimizer.py   AdamW, Muon, schedule      score.py       log-probs of the tokens of given rows

A step is a pure function (state, frozen parameters, batch) -> (state, metrics), compiled once. What is frozen (the base
under LoRA) is no part of the state: it has no gradient, no optimizer state, and is not written to checkpoints.
"""
