"""Train the demo model from scratch: `python -m engine.demo.train --minutes 90 --seed 7`.

Muon for the matrices and AdamW for the rest, in float32, with a loss on answers only and a curriculum that
advances on accuracy. The learning rate warms up, stays, and falls in a straight line over the last part;
what is saved is the running mean of the weights, rounded to bfloat16. The schedule follows the clock, so
two runs with one seed see the same data in the same order but need not end after the same step.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from common.quality.graders import grade
from engine.demo.decode import greedy
from engine.demo.muon import Muon
from engine.demo.network import DemoModel, Shape, load_model, save_model
from engine.demo.tasks import GRADERS, LEVELS, TASKS, examples, form_of, message
from engine.demo.trees import Batch, Curriculum
from engine.demo.vocabulary import BEGIN, END, token_id, train_tokenizer, write_tokenizer

MODEL_DIRECTORY = Path(__file__).parent / "model"
MATRIX_RATE, OTHER_RATE = 4e-3, 3e-3
WARMUP_STEPS = 100
DECAY_SHARE = 0.35  # of the time, at the end
LAST_RATE = 0.02  # of the full rate
TOKENS_A_STEP = 2_000
BATCHES_TOGETHER = 8
MEAN_MEMORY = 0.998
CHECK_SECONDS = 240.0
CHECK_PROMPTS = 64


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=90.0, help="wall-clock minutes of training (default 90)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="torch threads; 1 where other work shares the cores")
    parser.add_argument("--out", type=Path, default=MODEL_DIRECTORY)
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error("--minutes: must be more than 0")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(arguments.threads)
    train(arguments.minutes * 60, arguments.seed, arguments.out, Console())


def train(seconds: float, seed: int, out: Path, console: Console) -> None:
    """Train for so many seconds and leave the model's files in `out`, renewed at every check on the way."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(seed)
    shape = Shape(vocabulary=tokenizer.get_vocab_size())
    model = DemoModel(shape)
    model.initialise(torch.Generator().manual_seed(seed))
    weights = sum(weight.numel() for weight in model.parameters())
    console.print(f"{weights:,} weights, {shape.vocabulary} tokens, seed {seed}, {torch.get_num_threads()} threads")
    run = Run(model, tokenizer, seed)
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console)
    with bar:
        shown = bar.add_task("training", total=seconds)
        started = time.monotonic()
        next_check = CHECK_SECONDS
        while (elapsed := time.monotonic() - started) < seconds:
            run.step(elapsed / seconds)
            bar.update(shown, completed=elapsed, description=f"step {run.steps} loss {run.loss:.3f}")
            if elapsed >= next_check:
                next_check = elapsed + CHECK_SECONDS
                run.save(out, elapsed, seconds, seed)
                console.print(f"{elapsed / 60:5.1f} min  {run.state()}\n{held_out(out, tokenizer)}")
    run.save(out, seconds, seconds, seed)
    console.print(f"finished  {run.state()}\n{held_out(out, tokenizer)}")


class Run:
    """The state of one training run: weights, their running mean, optimizers and curriculum."""

    def __init__(self, model: DemoModel, tokenizer: Tokenizer, seed: int) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.curriculum = Curriculum(tokenizer, seed)
        self.waiting: list[Batch] = []
        matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
        others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
        self.optimizers: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (Muon(matrices, MATRIX_RATE), MATRIX_RATE),
            (torch.optim.AdamW(others, OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0), OTHER_RATE),
        )
        self.mean = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
        self.steps = self.tokens = self.answers = 0
        self.loss = 0.0

    def step(self, progress: float) -> None:
        """One update, at the learning rate for this share of the time."""
        rate = min(1.0, (self.steps + 1) / WARMUP_STEPS)
        rate *= max(LAST_RATE, min(1.0, (1 - progress) / DECAY_SHARE))
        batch = self._draw()
        hidden, _ = self.model(batch.ids, batch.positions, batch.mask)
        asked = batch.targets >= 0
        scores = self.model.logits(hidden[asked])  # [answer tokens, vocabulary]
        targets = batch.targets[asked]
        loss = functional.cross_entropy(scores, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, full_rate in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = full_rate * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._record(batch, scores.detach().argmax(-1) == targets, batch.branch[asked])
        self._average()
        self.steps += 1
        self.tokens += batch.ids.numel()
        self.answers += len(batch.branches)
        self.loss = 0.98 * self.loss + 0.02 * loss.item() if self.steps > 1 else loss.item()

    def _draw(self) -> Batch:
        if not self.waiting:
            end = token_id(self.tokenizer, END)
            self.waiting = self.curriculum.batches(TOKENS_A_STEP, BATCHES_TOGETHER, end)
        return self.waiting.pop()

    def _record(self, batch: Batch, right: Tensor, owners: Tensor) -> None:
        wrong = torch.zeros(len(batch.branches)).index_add_(0, owners, (~right).float())
        for branch, errors in zip(batch.branches, wrong.tolist(), strict=True):
            self.curriculum.record(branch, errors == 0)

    @torch.no_grad()
    def _average(self) -> None:
        memory = min(MEAN_MEMORY, self.steps / (self.steps + 10))
        for name, weight in self.model.state_dict().items():
            self.mean[name].lerp_(weight, 1 - memory)

    def save(self, out: Path, elapsed: float, seconds: float, seed: int) -> None:
        """Write the mean weights and how they came about."""
        write_tokenizer(self.tokenizer, out, self.model.shape.longest_tokens)
        begin, end = token_id(self.tokenizer, BEGIN), token_id(self.tokenizer, END)
        save_model(self.mean, self.model.shape, end, begin, out)
        report = {
            "seed": seed,
            "minutes_planned": seconds / 60,
            "minutes_trained": round(elapsed / 60, 1),
            "threads": torch.get_num_threads(),
            "steps": self.steps,
            "padded_tokens": self.tokens,
            "answers": self.answers,
            "difficulty": self.curriculum.difficulty,
            "shape": asdict(self.model.shape),
        }
        (out / "training.json").write_text(json.dumps(report, indent=2) + "\n")

    def state(self) -> str:
        """One line: how far the run and its curriculum are."""
        tasks = "  ".join(
            f"{task} {self.curriculum.difficulty[task]} {self.curriculum.learned[task]:.0%}" for task in TASKS
        )
        return f"step {self.steps}  {self.tokens / 1e6:.1f}M tokens  loss {self.loss:.3f}  {tasks}"


def held_out(directory: Path, tokenizer: Tokenizer) -> str:
    """Share of held-out prompts that the saved weights answer rightly and in form, by task and level, as
    lines."""
    model = load_model(directory)
    lines = []
    for task in TASKS:
        asked = list(islice(examples(task, "test", 1), CHECK_PROMPTS))
        cells = []
        for level in LEVELS:
            answers = greedy(model, tokenizer, [message(example.prompt, level) for example in asked])
            right = [
                form_of(answer) == level and grade(GRADERS[task], answer, example.reference)
                for (answer, _), example in zip(answers, asked, strict=True)
            ]
            cells.append(f"{level} {sum(right) / len(right):4.0%}")
        lines.append(f"    {task:<11} {'  '.join(cells)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
