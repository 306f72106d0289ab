"""What became of decisions and answers: the outcomes that callers with engines of their own report, and ratings."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from pith.engine.v1 import inference_pb2
from pith.router.v1 import generation_pb2

from common.auth import Principal, Role
from common.clock import Clock
from common.errors import not_found
from router.accounting import Accountant, Answered
from router.answers import Answers, Key
from router.convert import to_turns
from router.directives.decide import Decision
from router.directives.levels import Directive
from router.directives.policy import Policy
from router.ledger import Ledger, Rating
from router.outcome_limits import check_match, check_outcome, check_rating
from router.redaction import Redaction
from router.seal import SealedDecision, Sealer, unknown_decision
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.ledger import LedgerRepository
from router.tenant import tenant_of
from router.validation import RequestLimits

MAX_SEALED_ID_CHARACTERS = 64
"""Of a sample's id, where Pith's own have 32: all that a seal has room for."""


class Outcomes:
    """Closes the loop of Decide and of Generate. Keeps no state of its own.

    Args:
        answers: Knows which requests are accounted for, so that none is twice.
        redaction: What comments go through before anything keeps them.
    """

    def __init__(
        self,
        sealer: Sealer,
        keeper: SnapshotKeeper,
        accountant: Accountant,
        answers: Answers[Any],
        ledger: Ledger,
        database: Database,
        clock: Clock,
        limits: RequestLimits,
        redaction: Redaction,
    ) -> None:
        self._sealer = sealer
        self._keeper = keeper
        self._accountant = accountant
        self._answers = answers
        self._ledger = ledger
        self._database = database
        self._clock = clock
        self._limits = limits
        self._redaction = redaction

    def seal(
        self,
        request: generation_pb2.GenerateRequest,
        key: Key,
        model: str,
        decision: Decision,
        *,
        sample_wanted: bool,
    ) -> str:
        """The decision_id of what was decided just now on the request of that (tenant, request_id)."""
        sample_id = request.evaluation.sample_id
        if len(sample_id) > MAX_SEALED_ID_CHARACTERS or not sample_id.isascii():
            sample_id = hashlib.blake2b(sample_id.encode(), digest_size=16).hexdigest()
        return self._sealer.seal(
            SealedDecision(
                tenant=key[0],
                request_id=key[1],
                task=request.task,
                model=model,
                directive=decision.directive.name,
                directive_revision=decision.directive.revision,
                reason=decision.reason,
                planned=decision.planned,
                policy=decision.policy.name if decision.policy else "",
                policy_revision=decision.policy.revision if decision.policy else 0,
                eligible=decision.eligible,
                evaluation_sample_id=sample_id,
                sample_wanted=sample_wanted,
                decided_at=self._clock.now(),
            )
        )

    def report(self, request: generation_pb2.ReportOutcomeRequest, principal: Principal) -> None:
        """Settles the outcome of a decision, once; the same again changes nothing. Does no I/O.

        Raises:
            PithError: INVALID_ARGUMENT, or NOT_FOUND: also where the decision is another tenant's.
        """
        check_outcome(request, self._limits)
        decided = self._sealer.open(request.decision_id, self._clock.now())
        if principal.tenant != decided.tenant and principal.role is not Role.ADMIN:
            raise unknown_decision()
        check_match(request, decided)
        key = (decided.tenant, decided.request_id)
        if self._answers.answered(key):
            return
        answered = self._answered(request, decided)
        # All levels of a sample are generated here, so it must be of the model that the router serves.
        keep = decided.sample_wanted and request.HasField("request") and answered.model == decided.model
        self._accountant.settle(answered, None, sampled=keep)
        self._answers.remember([key])

    async def rate(self, request: generation_pb2.RateAnswerRequest, principal: Principal) -> None:
        """Takes a user's rating of an answer; the last one counts.

        Raises:
            PithError: INVALID_ARGUMENT, PERMISSION_DENIED (another tenant's), NOT_FOUND (never answered), UNAVAILABLE
                (not known here, and the database does not answer).
        """
        check_rating(request)
        key = (tenant_of(request.tenant, principal), request.request_id)
        if not self._answers.answered(key) and not await self._in_ledger(key):
            raise not_found("request", request.request_id)
        comment = self._redaction.text(request.comment)
        self._ledger.rate(Rating(*key, request.rating, comment, self._clock.now(), principal.name))

    async def _in_ledger(self, key: Key) -> bool:
        async with self._database.reading() as connection:
            return await LedgerRepository(connection).contains(*key)

    def _answered(self, request: generation_pb2.ReportOutcomeRequest, decided: SealedDecision) -> Answered:
        asked = generation_pb2.GenerateRequest()
        asked.CopyFrom(request.request)
        asked.task = decided.task
        asked.ClearField("evaluation")
        if decided.evaluation_sample_id:
            asked.evaluation.sample_id = decided.evaluation_sample_id
        finished = inference_pb2.Finished(
            reason=request.finish_reason, usage=request.usage, busy_seconds=request.busy_seconds
        )
        if request.HasField("energy"):
            finished.energy.CopyFrom(request.energy)
        return Answered(
            request=asked,
            tenant=decided.tenant,
            request_id=decided.request_id,
            turns=to_turns(asked.messages),
            decision=self._decision(decided),
            model=self._model(request, decided),
            engine="",
            seed=asked.sampling.seed if asked.sampling.HasField("seed") else None,
            finished=finished,
            started_at=decided.decided_at,
            seconds=request.seconds,
        )

    def _model(self, request: generation_pb2.ReportOutcomeRequest, decided: SealedDecision) -> str:
        """That was asked for: the one that answered, but for where a directive had another answer in its place."""
        directive = self._keeper.snapshot.directives.get(decided.directive)
        if directive is not None and directive.model and decided.model:
            return decided.model
        return request.model or decided.model

    def _decision(self, decided: SealedDecision) -> Decision:
        """As far as it is accounted for. A policy that is gone by now keeps no sample."""
        policy: Policy | None = None
        if decided.policy:
            present = next((p for p in self._keeper.snapshot.policies if p.name == decided.policy), None)
            policy = present or Policy(decided.policy, sample_share=0.0)
            policy = replace(policy, revision=decided.policy_revision)
        return Decision(
            directive=Directive(decided.directive, revision=decided.directive_revision),
            reason=decided.reason,
            explanation="",
            policy=policy,
            planned=decided.planned,
            eligible=decided.eligible,
        )
