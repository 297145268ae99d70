"""LightThinker++ (arXiv 2604.03679): a memory that the model manages by actions.

    machine.py    entities and their visibility, a pure state
    syntax.py     actions as tokens: special tokens, what the environment replies, a parser
    rows.py       a trajectory as a training row, in either semantics
    trajectories.py   trajectories from an engine
    log.py        a trajectory as text and JSON
    agent.py      agents: questions worked on with tools, judged and counted; agent_job.py a whole run, agent_files.py
                  the questions of BrowseComp and xBench
    tools.py      search and visit over a corpus (corpus.py), programs and the user's functions (tool_process.py)
    multihop.py   the embedded world of agents, and multihop_expert.py, which solves it

The two semantics, which training and decoding must share:

    rebuild       the context is rebuilt as text after every action (the paper's)
    lifetimes     nothing is rebuilt: a commit ends the lifetimes of the step's keys, an expand feeds them again
"""
