"""What is wrong with the policies taken together, as the router finds it: for people, the gravest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from router.cli.failures import CallError
from router.cli.output import coloured, console, table

if TYPE_CHECKING:
    from pith.router.v1.policies_pb2 import Finding
    from rich.console import Console

    from router.cli.command import Session
    from router.cli.connection import Connection

_STYLES = {"conflict": "red", "warning": "yellow", "note": "cyan"}


# Why samples of a policy are never judged.
_UNJUDGED = {"no_grader", "no_samples"}


def all_findings(router: Connection) -> Sequence[Finding]:
    """Empty where the router cannot tell: they are said beside a result, which stands without them."""
    from pith.router.v1.policies_pb2 import CheckPoliciesRequest

    try:
        return router.call(router.policies.CheckPolicies, CheckPoliciesRequest()).findings
    except CallError:
        return ()


def print_why_unjudged(session: Session) -> None:
    """The policies that keep no samples, or none that can be judged."""
    with session.router() as router:
        found = [finding for finding in all_findings(router) if finding.code in _UNJUDGED]
    if found:
        print_findings(found, console())


def print_findings(findings: Sequence[Finding], out: Console) -> None:
    from router.cli.document import word

    rows = [
        (
            coloured(word(finding, "severity"), _STYLES.get(word(finding, "severity"), "")),
            ", ".join([finding.subject, *finding.others]),
            finding.message,
        )
        for finding in sorted(findings, key=lambda finding: -finding.severity)
    ]
    out.print(table(("SEVERITY", "ABOUT", "FINDING"), rows))


def grave(findings: Sequence[Finding]) -> bool:
    """Whether some of what the policies say has no effect, or contradicts."""
    from pith.router.v1.policies_pb2 import Finding

    return any(finding.severity >= Finding.SEVERITY_WARNING for finding in findings)
