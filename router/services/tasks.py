"""Service Tasks: the prompts that an admin has labelled, and what is told from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pith.router.v1 import tasks_pb2 as pb
from pith.router.v1 import tasks_pb2_grpc

from common.auth import Role, current_request
from common.clock import Clock
from common.errors import Violations
from common.grpc_server import Context
from router import convert
from router.directives.tell import LEAST_LIKELIHOOD, accuracies, likeliest, macro_f1, tell
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.task_examples import TaskExample, TaskExampleRepository, TaskRevision
from router.task_keeper import TaskKeeper, Trained
from router.task_limits import check_examples, check_told
from router.validation import RequestLimits

SERVICE = pb.DESCRIPTOR.services_by_name["Tasks"]
ROLES = {method.name: {Role.ADMIN} for method in SERVICE.methods}

SHOWN = 5
"""Of the likeliest tasks."""


class TasksService(tasks_pb2_grpc.TasksServicer):
    """A change is one transaction, in force here when the call returns."""

    def __init__(
        self, database: Database, keeper: SnapshotKeeper, tasks: TaskKeeper, clock: Clock, limits: RequestLimits
    ) -> None:
        self._database = database
        self._keeper = keeper
        self._tasks = tasks
        self._clock = clock
        self._limits = limits

    async def SetTaskExamples(self, request: pb.SetTaskExamplesRequest, context: Context) -> pb.TaskClassifier:
        faults = Violations()
        check_examples(faults, request)
        faults.raise_if_any()
        examples = tuple(TaskExample(one.task, one.text) for one in request.examples)
        # Before it is written: what no router could be trained on is not kept.
        classifier = await self._tasks.learn(examples)
        caller = current_request()
        assert caller is not None, "only called through the server, which enters a request"
        async with self._database.changing() as connection:
            revision = await TaskExampleRepository(connection).replace(
                examples, request.reason, self._clock.now(), caller.principal.name
            )
        trained = Trained(revision.revision, classifier)
        self._tasks.put(trained)
        await self._keeper.refresh()
        return _card(revision, _counts(examples), trained)

    async def GetTaskClassifier(self, request: pb.GetTaskClassifierRequest, context: Context) -> pb.TaskClassifier:
        trained = self._tasks.trained
        async with self._database.reading() as connection:
            repository = TaskExampleRepository(connection)
            return _card(await repository.newest(), await repository.counts(), trained)

    async def TellTask(self, request: pb.TellTaskRequest, context: Context) -> pb.TellTaskResponse:
        faults = Violations()
        check_told(faults, request, self._limits)
        faults.raise_if_any()
        classifier = self._tasks.trained.classifier
        if classifier is None:
            return pb.TellTaskResponse()
        told = tell(classifier, request.text)
        return pb.TellTaskResponse(
            likeliest=[
                pb.TellTaskResponse.Likelihood(task=one.task, likelihood=one.likelihood)
                for one in likeliest(classifier, request.text, SHOWN)
            ],
            told=told.task if told else "",
        )


def _counts(examples: Sequence[TaskExample]) -> Counter[str]:
    return Counter(one.task for one in examples)


def _card(newest: TaskRevision | None, counts: Counter[str], trained: Trained) -> pb.TaskClassifier:
    """Args:
    counts: Of the examples by task, in the order of their first one.
    """
    card = pb.TaskClassifier(least_likelihood=LEAST_LIKELIHOOD, trained=trained.revision == 0)
    if newest is None:
        return card
    card.revision = newest.revision
    card.updated_at.CopyFrom(convert.timestamp(newest.updated_at))
    card.updated_by = newest.updated_by
    card.reason = newest.reason
    card.trained = trained.revision == newest.revision
    card.tasks.extend(pb.TaskClassifier.Task(task=task, examples=count) for task, count in counts.items())
    if card.trained and trained.classifier is not None:
        card.macro_f1 = macro_f1(trained.classifier)
        for task, found in zip(card.tasks, accuracies(trained.classifier), strict=True):
            task.told_right, task.told_wrong, task.untold = found.right, found.wrong, found.untold
    return card
