"""Agreement with people and users as messages of the contract."""

from __future__ import annotations

from pith.evaluator.v1 import evaluation_pb2

from common.quality.agreement import PeopleAgreement, ThumbsAgreement
from evaluator.agreement import Agreement, AgreementWatch
from evaluator.convert import from_interval


def from_agreement(found: Agreement, watch: AgreementWatch) -> evaluation_pb2.Agreement:
    return evaluation_pb2.Agreement(
        people=[_from_people(one, alarm=watch.alarm(one.kappa)) for one in found.people],
        thumbs=[_from_thumbs(one, alarm=not one.directive and watch.alarm(one.kappa)) for one in found.thumbs],
        disagreement_limit=watch.limit,
    )


def _from_people(one: PeopleAgreement, *, alarm: bool) -> evaluation_pb2.Agreement.PeopleAgreement:
    corrected = one.corrected
    return evaluation_pb2.Agreement.PeopleAgreement(
        judge=one.judge,
        task=one.task,
        pairs=one.pairs,
        choices=one.choices,
        raters=one.raters,
        agreeing=one.agreeing,
        kappa=from_interval(one.kappa),
        shared_pairs=one.shared_pairs,
        kappa_of_raters=from_interval(one.kappa_of_raters),
        scored_pairs=one.scored_pairs,
        judge_rate=one.judge_rate,
        corrected_rate=None if corrected is None else from_interval(corrected.rate),
        judge_weight=None if corrected is None else corrected.weight,
        alarm=alarm,
    )


def _from_thumbs(one: ThumbsAgreement, *, alarm: bool) -> evaluation_pb2.Agreement.ThumbsAgreement:
    return evaluation_pb2.Agreement.ThumbsAgreement(
        judge=one.judge,
        task=one.task,
        directive=one.directive,
        ratings=one.ratings,
        mean_rating=one.mean_rating,
        mean_quality=one.mean_quality,
        agreeing=one.agreeing,
        kappa=from_interval(one.kappa),
        rank_correlation=one.rank_correlation,
        alarm=alarm,
    )
