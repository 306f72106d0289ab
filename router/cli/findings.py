"""What is wrong with the policies taken together, as the router finds it: for people, the gravest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from router.cli.output import coloured, table

if TYPE_CHECKING:
    from pith.router.v1.policies_pb2 import Finding
    from rich.console import Console

_STYLES = {"conflict": "red", "warning": "yellow", "note": "cyan"}


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
