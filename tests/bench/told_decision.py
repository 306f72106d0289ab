"""A decision on a request that names no task: its text's features, its task, what each level is expected to cost and
to be worth, the level that costs least at a price of quality, and then `decide`.

Prompts are made up, of 20 tasks in English and Japanese: what is timed does not depend on how well they are told apart,
but how often they are is reported too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np

from router.directives.bounds import Snapshot
from router.directives.choice import best_actions
from router.directives.classify import TaskClassifier, train_on_texts
from router.directives.decide import Decision, Facts, decide
from router.directives.expectation import Expectation, teach
from router.directives.text_features import FeatureTable, features_of, table_of

CHARACTERS: Final = (64, 512, 4_096)
LABELLED_OF_A_TASK: Final = 50
JOULES_PER_QUALITY: Final = 200.0
_OBJECTS: Final = {
    "English": "invoice recipe poem contract essay bug flight lease dataset patient lyric ticket theorem novel budget "
    "harvest robot statute molecule podcast",
    "Japanese": "請求書 料理 詩 契約 作文 不具合 航空便 賃貸 資料 患者 歌詞 問い合わせ 定理 小説 "
    "予算 収穫 機械 法令 分子 番組",
}
"""One a task, by language."""
_FILLERS: Final = {
    "English": "please look at what the last report of our office in Berlin says and tell me, in order, why 42 of the "
    "people who wrote to us asked for more time; compare both answers.",
    "Japanese": "昨日の会議では、42件の要望について話し合いました。 部長は理由を三つ挙げ、 次の手順を説明しました。 "
    "この文章を読んで、 要点を順に教えてください。 両方の答えを比べると、 どう違いますか。",
}


def prompt(task: int, language: str, characters: int, rng: random.Random) -> str:
    """So many characters; a third of the words are the task's own."""
    own, fillers = _OBJECTS[language].split()[task], _FILLERS[language].split()
    words: list[str] = []
    length = 0
    while length < characters:
        words.append(own if rng.random() < 1 / 3 else rng.choice(fillers))
        length += len(words[-1]) + 1
    return " ".join(words)[:characters]


class ToldDecision:
    """The whole way of a text to a decision, with what it learns from labelled prompts.

    Args:
        levels: Names of the actions, the baseline first.
    """

    def __init__(self, known: Snapshot, tasks: Sequence[str], levels: Sequence[str], now: datetime) -> None:
        self._known = known
        self._levels = levels
        self._now = now
        rng = random.Random(3)
        texts: list[str] = []
        labels: list[str] = []
        for place, task in enumerate(tasks):
            for number in range(LABELLED_OF_A_TASK):
                language = ("English", "Japanese")[number % 2]
                texts.append(prompt(place, language, round(64 * 64 ** rng.random()), rng))
                labels.append(task)
        self._classifier: TaskClassifier = train_on_texts(texts, labels)
        self._expected: Mapping[str, Expectation] = {
            task: _taught(table_of([features_of(text) for text, of in zip(texts, labels, strict=True) if of == task]))
            for task in tasks
        }

    def task(self, text: str) -> str:
        return self._classifier.classify(text)

    def __call__(self, text: str, tenant: str, model: str, request_id: str) -> tuple[str, Decision]:
        """The level that is best for this text, and what the policies in force have it served."""
        found = features_of(text)
        task = self._classifier.tasks[int(self._classifier.scores.predict_one(found).argmax())]
        joules, quality = self._expected[task].of_one(found)
        best = self._levels[int(best_actions(joules[None], quality[None], JOULES_PER_QUALITY)[0])]
        return best, decide(Facts(tenant, task, model, request_id, request_id), self._known, self._now)


def _taught(prompts: FeatureTable) -> Expectation:
    """Of 5 levels, each shorter and a little worse than the one before, with noise."""
    rng = np.random.default_rng(4)
    levels = np.arange(5)
    longest = rng.lognormal(5.0, 0.5, (len(prompts), 1))
    joules = longest / (1 + levels) * rng.lognormal(0.0, 0.2, (len(prompts), 5))
    return teach(prompts, joules, 1.0 - 0.02 * levels - rng.uniform(0.0, 0.05, (len(prompts), 5))).expectation


def time_told(
    known: Snapshot,
    tasks: Sequence[str],
    levels: Sequence[str],
    models: Sequence[str],
    now: datetime,
    count: int,
    quantiles: Callable[[Sequence[float]], dict[str, float]],
) -> dict[str, Any]:
    """`count` decisions of each language and length, texts that nothing was learnt from."""
    told = ToldDecision(known, tasks, levels, now)
    rng = random.Random(5)
    everything: list[float] = []
    by_text: dict[str, dict[str, float]] = {}
    right = 0
    for language in _OBJECTS:
        for characters in CHARACTERS:
            seconds: list[float] = []
            for number in range(count):
                place = rng.randrange(len(tasks))
                text, model = prompt(place, language, characters, rng), rng.choice(models)
                begun = time.perf_counter()
                told(text, "shop", model, f"r-{number}")
                seconds.append(time.perf_counter() - begun)
                right += told.task(text) == tasks[place]
            everything += seconds
            by_text[f"{language}, {characters} characters"] = _microseconds(quantiles(seconds))
    return {
        "tasks": len(tasks),
        "labelled_of_a_task": LABELLED_OF_A_TASK,
        "decisions": len(everything),
        "tasks_told_right": right / len(everything),
        "microseconds": _microseconds(quantiles(everything)),
        "microseconds_by_text": by_text,
    }


def _microseconds(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: value * 1e6 for name, value in seconds.items()}
