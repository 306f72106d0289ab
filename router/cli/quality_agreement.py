"""`pithctl quality agreement`: whether people and users see what the judge sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from router.cli.command import Session, command
from router.cli.output import coloured, console, dim, print_document, table
from router.cli.units import UNKNOWN, count, percent

if TYPE_CHECKING:
    from pith.evaluator.v1.evaluation_pb2 import Agreement
    from rich.text import Text

_PEOPLE = ("TASK", "JUDGE", "PAIRS", "AGREE", "KAPPA", "RATERS' KAPPA", "JUDGE'S RATE", "PEOPLE'S RATE", "ALARM")
_THUMBS = ("TASK", "JUDGE", "DIRECTIVE", "RATINGS", "MEAN THUMB", "MEAN SCORE", "AGREE", "KAPPA", "RANKS", "ALARM")


def register(app: typer.Typer) -> None:
    command(app, "agreement")(agreement)


def agreement(session: Session) -> None:
    """Says how far judges agree with people. With those who compared pairs, and with users' thumbs."""
    from pith.evaluator.v1.evaluation_pb2 import GetAgreementRequest

    from router.cli.document import as_document

    with session.evaluator() as evaluator:
        found = evaluator.call(evaluator.evaluation.GetAgreement, GetAgreementRequest())
    if session.as_json:
        print_document(as_document(found))
    else:
        _print(found)


def _print(found: Agreement) -> None:
    from common.quality.agreement import MIN_PAIRS

    out = console()
    if found.people:
        out.print("People who compared a directive's answer with L0's, not knowing which is which:")
        out.print(table(_PEOPLE, [_people_row(one) for one in found.people], right=_PEOPLE[2:-1]))
        out.print(
            dim(
                "Agree: win, tie or loss the same. Kappa: beyond chance; 1 is always, 0 as often as by chance. "
                "Rates are preferences for the directive's answer: 50 % is as good as L0's. People's rate is over all "
                "pairs that the judge has scored (prediction-powered); intervals are 95 %, asymptotic."
            )
        )
    else:
        out.print("Nobody has compared answers yet: pithctl review")
    out.print()
    if found.thumbs:
        out.print("Users who rated an answer that the judge has scored:")
        out.print(table(_THUMBS, [_thumbs_row(one) for one in found.thumbs], right=_THUMBS[3:-1]))
        out.print(
            dim(
                "Thumbs and scores are from 0 to 1, and agree where both are above, at or below 1/2. Ranks: Spearman's "
                "correlation, where a judge only says how far it prefers an answer to L0's."
            )
        )
    else:
        out.print("No user has rated an answer that a judge has scored.")
    if found.people or found.thumbs:
        out.print()
        out.print(
            dim(
                f"The alarm is raised where 1 - kappa is above {found.disagreement_limit:g} at every kappa of its "
                f"interval: then have another judge or grader score the task. {UNKNOWN}: of fewer than "
                f"{MIN_PAIRS}, or nothing to tell from chance."
            )
        )


def _people_row(one: Agreement.PeopleAgreement) -> tuple[str | Text, ...]:
    from router.cli.document import value

    pairs = count(one.pairs) if one.raters == 1 else f"{count(one.pairs)} by {count(one.raters)}"
    return (
        one.task or "any",
        one.judge,
        pairs,
        percent(value(one, "agreeing")),
        _kappa(one, "kappa"),
        _kappa(one, "kappa_of_raters"),
        f"{percent(one.judge_rate)} of {count(one.scored_pairs)}",
        _rate(one),
        _alarm(raised=one.alarm),
    )


def _thumbs_row(one: Agreement.ThumbsAgreement) -> tuple[str | Text, ...]:
    from router.cli.document import value

    ranks = value(one, "rank_correlation")
    return (
        one.task or "any",
        one.judge,
        one.directive or "all",
        count(one.ratings),
        f"{one.mean_rating:.2f}",
        f"{one.mean_quality:.2f}",
        percent(value(one, "agreeing")),
        _kappa(one, "kappa"),
        UNKNOWN if ranks is None else _signed(ranks),
        _alarm(raised=one.alarm),
    )


def _kappa(one: Agreement.PeopleAgreement | Agreement.ThumbsAgreement, field: str) -> str:
    from router.cli.document import value

    kappa = value(one, field)
    return UNKNOWN if kappa is None else f"{_signed(kappa.value)} ({_signed(kappa.lower)} to {_signed(kappa.upper)})"


def _signed(value: float) -> str:
    # Adding 0 makes 0 of what is -0 when rounded.
    return f"{round(value, 2) + 0.0:.2f}"


def _rate(one: Agreement.PeopleAgreement) -> str:
    from router.cli.document import value

    rate = value(one, "corrected_rate")
    return UNKNOWN if rate is None else f"{percent(rate.value)} ({percent(rate.lower)} to {percent(rate.upper)})"


def _alarm(*, raised: bool) -> Text:
    return coloured("raised" if raised else "-", "red" if raised else "")
