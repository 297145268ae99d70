"""LightThinker++ (arXiv 2604.03679): a memory that the model manages by actions.

    machine.py    entities and their visibility, a pure state
    syntax.py     actions as tokens: special tokens, what the environment replies, a parser
    rows.py       a trajectory as a training row, in either semantics
    trajectories.py   trajectories from an engine
    log.py        a trajectory as text and JSON
    teachers/     what writes trajectories to learn from: an endpoint, a local model, a script; and their prompts
    environment.py, synthesis.py    where teachers work, and many problems with it; journal.py keeps what is finished
    prune.py, statistics.py, dataset.py    what is worth learning from, numbers about it, and it as a TFDS data set
    counted.py    what a trajectory costs in either semantics, without a model
    rl.py         reinforcement learning of the actions, on `lt_jax.rl`
    agent.py      agents: questions worked on with tools; agent_files.py the questions of BrowseComp and xBench
    tools.py      search and visit over a corpus (corpus.py), programs and the user's functions (tool_process.py)
    multihop.py   the embedded world of agents, and multihop_expert.py, which solves it

The two semantics, which training and decoding must share:

    rebuild       the context is rebuilt as text after every action (the paper's)
    lifetimes     nothing is rebuilt: a commit ends the lifetimes of the step's keys, an expand feeds them again
"""
