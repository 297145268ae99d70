r"""Agents: a model that was trained for method "memory" works on questions with a search over a corpus.

Why: does a context that the model manages itself stay small over many rounds, and does that solve more? The table has
success by difficulty and the context by round, mean and 95th percentile. A vanilla agent is the same command with a
model that was trained without memory actions, and with memory.context; it ends where its context is full.

    python launch/agent.py --config=configs/agent.py --config.model.path=DIR --config.embedded=100 \
        --config.told=False --config.tools.results=3 --config.tools.snippet=15

DIR is a folder that training wrote. These are questions of the embedded world (lt_jax/memory/multihop.py): trails over
generated pages, whose end asks for something that was read early. For questions of a file, in the style of BrowseComp
or xBench (encrypted ones are decrypted with their canary), over pages of a file ("id", "title", "text"):

    python launch/agent.py --config=configs/agent.py --config.model.path=DIR --config.questions.path=questions.csv \
        --config.corpus=pages.jsonl --config.tools.python=True

Hardware: anything. On two CPU cores a small model needs minutes for a hundred questions of the embedded world.
Expected: with a memory the context grows by what the summaries say of a page, twelve tokens a round here;
without one it grows by a page a round.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = ConfigDict({"path": "", "dtype": ""})  # the checkpoint; an empty dtype is chosen by the platform
    config.questions = ConfigDict({
        "path": "",  # a file of questions (.csv, .jsonl), see lt_jax/memory/agent_files.py
        "limit": 0,  # questions that are used, drawn at random; 0 uses all
    })  # fmt: skip
    # The file or folder of pages that search and visit know. Several are a tuple here and are separated by commas on
    # the command line.
    config.corpus = FieldReference("", field_type=object)
    config.embedded = 0  # work on this many questions of the embedded world, in place of those of a file
    config.trails = ConfigDict({
        "hops": (20, 60),  # the fewest and the most stops of a trail, which are rounds; hard ones are of the upper half
        "distractors": 1,  # other pages for every stop
        "filler": 4,  # words of a page that say nothing
        "recalls": (1, 4),  # how often easy and hard questions ask for what was read early
        "searches": 0.1,  # the share of stops that are to be searched for
        "letters": False,  # names of one letter in place of three digits, for the smallest models
    })  # fmt: skip
    config.tools = ConfigDict({
        "results": 5,  # pages that a search gives at most
        "snippet": 200,  # characters of each that it shows
        "piece": 4000,  # characters of a page that a visit shows at once
        "python": False,  # True lets agents run programs, which the kernel keeps from files, network and processes
        # Functions of your own as tools, module:function, called with a text. Several as with corpus.
        "functions": FieldReference("", field_type=object),
        "seconds": 30.0,  # for one call of a program or function
        "memory": 1024,  # megabytes of a program
        "most": 4000,  # characters of what a program or function may answer
        "processes": 2,  # of each of these tools, at the same time
    })  # fmt: skip
    config.memory = ConfigDict({
        "turn": 512,  # the most tokens of a turn
        "turns": 400,  # the most turns
        "tokens": 16384,  # the most tokens that the model writes for a question
        "malformed": 3,  # how many turns that were not possible may follow each other
        "context": 0,  # the most keys that a turn may begin with; 0 sets no limit
    })  # fmt: skip
    config.sampling = ConfigDict({"temperature": 0.0, "top_k": 0, "top_p": 1.0})
    config.told = True  # whether the system prompt says which actions and tools there are
    config.system = ""  # what else it says
    config.decode = ConfigDict({
        "rows": 8,  # questions that are worked on side by side
        "capacity": 0,  # the most keys that a row may hold; 0 is as many as the model has positions
        "threads": 8,  # tools that are asked at the same time
    })  # fmt: skip
    config.seed = 0  # of the questions that are drawn or made, and of sampling
    config.out = "runs/agent"  # folder for trajectories.jsonl and results.json
    config.compile_cache = "~/.cache/lt_jax/jax"  # folder that keeps compiled programs; if empty, none are kept
    return config
