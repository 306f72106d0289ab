"""Training batches: one prompt, then a branch for each directive that may follow it.

A branch sees the text and itself, never another branch, and its positions go on from the text's end; so the
network computes a text once for all its answers, and each branch is trained as if it stood alone. The loss
is on answers only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from engine.demo.tasks import LEVELS, LINES, TASKS, Example, examples, message
from engine.demo.vocabulary import ASSISTANT, BEGIN, END, SYSTEM, USER

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "Answer the question of the user.",
    "You work with short texts and numbers.",
)
LEVEL_SHARES: Mapping[str, Mapping[str, float]] = {
    # Sums in the head are meant to stay hard: few of them are practised, enough to learn their form.
    "arithmetic": {"L0": 1.0, "L1": 0.15, "L2": 0.15},
    "extraction": {"L0": 1.0, "L1": 0.7, "L2": 1.0},
    "listing": {"L0": 1.0, "L1": 0.7, "L2": 1.0},
    "counting": {"L0": 1.0, "L1": 0.7, "L2": 1.0},
}
ENOUGH = 0.75  # share of right answers at which a task becomes harder
MEMORY = 0.995  # of that share's running mean, an answer
EFFORT: Mapping[str, float] = {"arithmetic": 1.0, "extraction": 0.8, "listing": 1.4, "counting": 1.0}


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens of one question, directive and answer; the first `asked` of them are not the model's to say."""

    task: str
    level: str
    ids: list[int]
    asked: int


@dataclass(frozen=True, slots=True)
class Tree:
    """A text's tokens and the branches that go on from it."""

    trunk: list[int]
    branches: list[Branch]

    @property
    def tokens(self) -> int:
        return len(self.trunk) + sum(len(branch.ids) for branch in self.branches)


@dataclass(frozen=True, slots=True)
class Batch:
    """Trees as tensors, [trees, tokens]; `targets` is -1 where nothing is to be learned."""

    ids: Tensor
    positions: Tensor
    mask: Tensor  # [trees, 1, tokens, tokens]
    targets: Tensor
    branch: Tensor  # index into `branches`, -1 in the trunk and padding
    branches: list[Branch]


class TreeSource:
    """Endless training trees of one task at one difficulty."""

    def __init__(self, tokenizer: Tokenizer, task: str, difficulty: int, seed: int) -> None:
        self._tokenizer = tokenizer
        self._task = task
        self._rng = random.Random(f"trees {task} {difficulty} {seed}")
        self._examples = examples(task, "train", seed, difficulty)

    def __iter__(self) -> Iterator[Tree]:
        for example in self._examples:
            yield self._tree(example)

    def _tree(self, example: Example) -> Tree:
        rng, shares = self._rng, LEVEL_SHARES[self._task]
        levels = [level for level in LEVELS if rng.random() < shares[level]]
        head = BEGIN
        if rng.random() < 0.08:
            head += f"{SYSTEM} {rng.choice(SYSTEM_MESSAGES)}{END}"
        if rng.random() < 0.05 and self._task != "arithmetic":
            head += self._earlier_turn()
        trunk = self._encode(f"{head}{USER} {example.prompt}")
        branches = []
        for level in levels:
            directive = message("", level)  # with the newline before it
            asked = self._encode(f"{directive}{END}{ASSISTANT}")
            answer = self._encode(f" {example.answers[level]}{END}")
            branches.append(Branch(self._task, level, asked + answer, len(asked)))
        return Tree(trunk, branches)

    def _earlier_turn(self) -> str:
        """Another prompt asked and answered before this one."""
        before, level = next(self._examples), self._rng.choice(LEVELS)
        return f"{USER} {message(before.prompt, level)}{END}{ASSISTANT} {before.answers[level]}{END}"

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class Curriculum:
    """Makes a task harder when the model has learned what it is given.

    `learned` is the running share of wholly right answers (arithmetic: at L0 alone, as its others are meant
    to fail).
    """

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._sources = {
            task: [iter(TreeSource(tokenizer, task, step, seed)) for step in range(len(steps))]
            for task, steps in LINES.items()
        }
        self._rng = random.Random(f"curriculum {seed}")
        self.difficulty = dict.fromkeys(TASKS, 0)
        self.learned = dict.fromkeys(TASKS, 0.0)

    def draw(self, shares: Mapping[str, float]) -> Tree:
        """A tree of a task drawn by `shares`, mostly of the task's present difficulty."""
        task = self._rng.choices(TASKS, [shares[task] for task in TASKS])[0]
        step = self.difficulty[task]
        if step and self._rng.random() < 0.25:
            step = self._rng.randrange(step)
        return next(self._sources[task][step])

    def batches(self, tokens: int, count: int, padding: int) -> list[Batch]:
        """`count` batches of about so many tokens each, trees of like length together: padding costs time."""
        shares = self.shares()
        trees: list[Tree] = []
        while sum(tree.tokens for tree in trees) < tokens * count:
            trees.append(self.draw(shares))
        trees.sort(key=lambda tree: tree.tokens)
        groups: list[list[Tree]] = [[]]
        for tree in trees:
            if (len(groups[-1]) + 1) * tree.tokens > tokens and groups[-1]:
                groups.append([])
            groups[-1].append(tree)
        self._rng.shuffle(groups)
        return [batch_of(group, padding) for group in groups]

    def record(self, branch: Branch, right: bool) -> None:
        """Take in whether an answer was wholly right, and move on where enough are."""
        task = branch.task
        if task == "arithmetic" and branch.level != "L0":
            return
        self.learned[task] = MEMORY * self.learned[task] + (1 - MEMORY) * right
        if self.learned[task] > ENOUGH and self.difficulty[task] < len(LINES[task]) - 1:
            self.difficulty[task] += 1
            self.learned[task] *= 0.7

    def shares(self) -> dict[str, float]:
        """How much of each task to draw: more where less is learned."""
        hardest = {task: len(LINES[task]) - 1 for task in TASKS}
        return {
            task: EFFORT[task] * (1.15 - (self.difficulty[task] + self.learned[task]) / (hardest[task] + 1))
            for task in TASKS
        }


def batch_of(trees: list[Tree], padding: int) -> Batch:
    """Trees as tensors, padded to the longest."""
    tokens = max(tree.tokens for tree in trees)
    size = (len(trees), tokens)
    ids, positions = torch.full(size, padding), torch.zeros(size, dtype=torch.long)
    targets, owner = torch.full(size, -1), torch.full(size, -1)
    segment = torch.full(size, -1)  # 0 in the trunk, 1, 2, ... in its branches, -1 in padding
    branches: list[Branch] = []
    for row, tree in enumerate(trees):
        trunk = len(tree.trunk)
        ids[row, :trunk] = torch.tensor(tree.trunk)
        positions[row, :trunk] = torch.arange(trunk)
        segment[row, :trunk] = 0
        at = trunk
        for number, branch in enumerate(tree.branches, 1):
            end = at + len(branch.ids)
            ids[row, at:end] = torch.tensor(branch.ids)
            positions[row, at:end] = torch.arange(trunk, trunk + len(branch.ids))
            segment[row, at:end] = number
            targets[row, at + branch.asked - 1 : end - 1] = torch.tensor(branch.ids[branch.asked :])
            owner[row, at + branch.asked - 1 : end - 1] = len(branches)
            branches.append(branch)
            at = end
    sees = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
    mask = sees & torch.ones(tokens, tokens, dtype=torch.bool).tril()
    return Batch(ids, positions, mask[:, None], targets, owner, branches)
