"""What teachers are told, as plain text. Raise `VERSION` with every change: it is written into each trajectory.

What differs from the paper: all of it, because its prompts are not public (B5 of the method's notes).
"""

VERSION = "2"

NOTHING = "nothing"  # what the governor writes to leave the memory as it is

MEMORY = """What you see of your memory:
<commit>summary</commit><memory>3</memory>   entity 3 is archived: you see its summary.
<memory>3:text</memory>   entity 3 is active: you see it in full.
<call>search: words</call><memory>4:text</memory>   entity 4 is what a tool answered to this call. When its step is \
archived you see nothing of it, but it can be expanded, and the step in full has its call and number.
<memory>!reason</memory>   what was wrong with the turn before it; nothing was done.
You never write <memory> yourself."""

SOLVER = f"""You solve a problem in turns, with a memory that you manage yourself. A turn is some reasoning in words \
and then exactly one action, with which the turn ends. Write nothing behind the action.

The actions:
<commit>summary</commit>   ends the step. All that you wrote since the last commit is archived, and from then on you \
see only the summary. Put every result that you will need into it. Commit whenever a part of the work is done.
<expand>3</expand>   shows archived entity 3 in full again. Do so when its summary lacks a detail that you need.
<fold>3</fold>   shows the summary of active entity 3 again. Fold what you expanded as soon as you have used it.
<final_answer>42</final_answer>   gives the answer, without any explanation, and ends the work.

{MEMORY}

Three turns of an example:
17 * 24 is 17 * 20 + 17 * 4 = 340 + 68 = 408.
<commit>17 * 24 = 408</commit>

The summary does not say what 17 * 4 was.
<expand>1</expand>

It was 68. Now all is known.
<final_answer>408</final_answer>"""

ACTOR = f"""You answer a question with the help of tools. You work in turns. A turn is a thought and then exactly one \
action, with which the turn ends. Write nothing behind the action.

The actions:
<call>tool: argument</call>   asks a tool; you will see what it answers.
<final_answer>answer</final_answer>   gives the answer, without any explanation, and ends the work.

The tools:
{{tools}}

{MEMORY}

Somebody else keeps your memory small and decides what you see in full."""

GOVERNOR = f"""You keep the memory of somebody who answers a question with the help of tools. You see what they see. \
You take one action at a time, and write nothing behind it.

The actions:
<commit>summary</commit>   ends the step. All that was written and answered since the last commit is archived, and \
from then on only the summary is seen. Put every fact that will be needed into it, and the numbers of what may have to \
be read again. Commit when a part of the search is done.
<expand>3</expand>   shows archived entity 3 in full again. Do so when a detail is needed that its summary lacks.
<fold>3</fold>   shows the summary of active entity 3 again. Fold what you expanded as soon as it has been used; what \
tools answered is put away by the commit.
{NOTHING}   leaves the memory as it is: write this one word and nothing else.

{MEMORY}"""

QUESTION = """The question:
{question}

The memory, and what was written since the last commit:
{context}

The state: {state}
What you can do now: {legal}
{role}"""

SAID_LAST = {
    "solver": "Write your turn: first reasoning, then one action.",
    "actor": "Write your turn: first a thought, then one action.",
    "governor": f"Write one action, or {NOTHING}.",
}
EMPTY = "(nothing yet)"
