"""What labelled prompts must satisfy before anything is learnt from them."""

from __future__ import annotations

from pith.router.v1 import tasks_pb2

from common.errors import Violations
from router.limits import check_text
from router.validation import RequestLimits, check_id

MIN_TASKS, MAX_TASKS = 2, 50
MIN_EXAMPLES, MAX_EXAMPLES = 10, 100
"""A task. From fewer than some 15 in all, what is held out cannot be told apart from what was learnt."""
MAX_ALL_EXAMPLES = 1_000
"""Training takes memory with their square and time with their cube: for so many 0.1 GB and a second of a core."""
MAX_EXAMPLE_CHARACTERS = 20_000


def check_examples(faults: Violations, request: tasks_pb2.SetTaskExamplesRequest) -> None:
    """No fault quotes a text. Their absence is none: it forgets them."""
    check_text(faults, "reason", request.reason)
    examples = request.examples
    if not examples or not faults.require(
        len(examples) <= MAX_ALL_EXAMPLES, "examples", f"has {len(examples):,} examples; at most {MAX_ALL_EXAMPLES:,}"
    ):
        return
    counts: dict[str, int] = {}
    firsts: dict[str, int] = {}
    for index, example in enumerate(examples):
        at = f"examples[{index}]"
        check_id(faults, f"{at}.task", example.task)
        counts[example.task] = counts.get(example.task, 0) + 1
        if _check_example(faults, f"{at}.text", example.text):
            first = firsts.setdefault(example.text, index)
            # The same twice would be told right for no merit of the classifier's.
            faults.require(first == index, f"{at}.text", f"is that of examples[{first}]; each may be given once")
    faults.require(
        MIN_TASKS <= len(counts) <= MAX_TASKS,
        "examples",
        f"are of {_number(len(counts), 'task')}; must be of {MIN_TASKS} to {MAX_TASKS}",
    )
    for task, count in list(counts.items())[: MAX_TASKS + 1]:
        name = f"task {task[:40]!r}" if task else "no task"
        faults.require(
            MIN_EXAMPLES <= count <= MAX_EXAMPLES,
            "examples",
            f"has {_number(count, 'example')} of {name}; must be {MIN_EXAMPLES} to {MAX_EXAMPLES}",
        )


def check_told(faults: Violations, request: tasks_pb2.TellTaskRequest, limits: RequestLimits) -> None:
    size, most = len(request.text), limits.max_prompt_characters
    faults.require(size > 0, "text", "is empty")
    faults.require(size <= most, "text", f"has {size:,} characters; at most {most:,}")


def _check_example(faults: Violations, field: str, text: str) -> bool:
    size = len(text)
    return (
        faults.require(size > 0, field, "is empty")
        and faults.require(
            size <= MAX_EXAMPLE_CHARACTERS, field, f"has {size:,} characters; at most {MAX_EXAMPLE_CHARACTERS:,}"
        )
        # PostgreSQL holds none: a router that reads it back would learn from another text.
        and faults.require("\x00" not in text, field, f"has the character U+0000 at {text.find(chr(0))}")
    )


def _number(count: int, of: str) -> str:
    return f"{count:,} {of}{'' if count == 1 else 's'}"
