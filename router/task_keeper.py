"""Keeps the classifier of tasks up to date with the prompts that an admin has labelled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from router.directives.classify import TaskClassifier, train_on_texts
from router.directives.compile import Turn
from router.directives.tell import Told, tell_turns
from router.store.database import Database, StoreUnavailable
from router.store.task_examples import TaskExample, TaskExampleRepository

RETRY_SECONDS = 1.0
"""Wall time."""

log = structlog.get_logger("tasks")


@dataclass(frozen=True, slots=True)
class Trained:
    """By which this router tells tasks.

    Attributes:
        revision: Of the labelled prompts; 0 before the first.
        classifier: None where there are no labelled prompts.
    """

    revision: int
    classifier: TaskClassifier | None


class TaskKeeper:
    """The current `Trained`. While the database is down, or where training fails, the last one stays in force."""

    def __init__(self, database: Database, retry_seconds: float = RETRY_SECONDS) -> None:
        self._database = database
        self._retry_seconds = retry_seconds
        self._lock = asyncio.Lock()
        self._training = asyncio.Lock()
        self._loading: asyncio.Task[None] | None = None
        self._asked = False
        self._failed = 0
        """The newest revision that could not be trained: looking again would not help."""
        self.trained = Trained(0, None)

    async def load(self) -> None:
        """Takes in what has been labelled, if anything is new. Raises StoreUnavailable."""
        # One at a time, so that an older one never replaces a newer one.
        async with self._lock:
            async with self._database.reading() as connection:
                repository = TaskExampleRepository(connection)
                newest = await repository.newest()
                if newest is None or newest.revision in (self.trained.revision, self._failed):
                    return
                examples = await repository.all()
            try:
                classifier = await self.learn(examples)
            except Exception:
                self._failed = newest.revision
                log.exception("tasks could not be learnt; the last ones stay in force", revision=newest.revision)
                return
            self.put(Trained(newest.revision, classifier))

    async def learn(self, examples: Sequence[TaskExample]) -> TaskClassifier | None:
        """None from no examples. In a thread, one at a time for the memory that it takes. Puts nothing in force."""
        if not examples:
            return None
        async with self._training:
            return await asyncio.to_thread(
                train_on_texts, [one.text for one in examples], [one.task for one in examples]
            )

    def put(self, trained: Trained) -> None:
        """Puts it in force, unless a newer one is."""
        if trained.revision > self.trained.revision:
            self.trained = trained
            log.info("tasks learnt", revision=trained.revision, tasks=len(_tasks(trained.classifier)))

    async def refresh(self) -> None:
        """Has `load` run in the background, as something has changed: who tells of the change waits for no training.
        Where the database is down, it goes on trying."""
        self._asked = True
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._keep_loading(), name="tasks")

    async def close(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait({self._loading})

    def tell(self, turns: Sequence[Turn]) -> Told | None:
        """The task of a request that names none; None where it is not to be told. Does no I/O."""
        classifier = self.trained.classifier
        return None if classifier is None else tell_turns(classifier, turns)

    async def _keep_loading(self) -> None:
        while self._asked:
            self._asked = False
            try:
                await self.load()
            except StoreUnavailable as error:
                log.warning("database is down; the last tasks stay in force", fault=error.fault)
                self._asked = True
                await asyncio.sleep(self._retry_seconds)


def _tasks(classifier: TaskClassifier | None) -> Sequence[str]:
    return () if classifier is None else classifier.tasks
