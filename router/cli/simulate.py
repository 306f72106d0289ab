"""`pithctl simulate`: what a policy would have made of recorded requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.clock import router_clock, set_time
from router.cli.command import Session, command
from router.cli.completion import complete_policy
from router.cli.failures import CallError, LocalError
from router.cli.files import STDIO, located, read_manifest
from router.cli.output import console, details, dim, print_document, table
from router.cli.units import UNKNOWN, count, grams, interval, percent

if TYPE_CHECKING:
    from pith.router.v1.policies_pb2 import Policy, SimulateResponse

    from router.cli.manifest import Manifest


def register(app: typer.Typer) -> None:
    command(app, "simulate")(simulate)


def simulate(
    session: Session,
    policy: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE",
            help="A policy, or a file as export writes it, which ends in .yaml or .yml or has a /; - is stdin.",
            autocompletion=complete_policy,
        ),
    ],
    name: Annotated[str, typer.Option("--policy", metavar="NAME", help="Which, where FILE has several.")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="As if it said this, e.g. mode=on, directives=[L1], latency.seconds=2; repeatable.",
        ),
    ] = None,
    from_time: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="ISO 8601, or a span before now such as -24h; default: -7d."),
    ] = None,
    to_time: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="As --from, exclusive; default: now.")
    ] = None,
) -> None:
    """Shows what a policy would have saved of recorded requests. Nothing is generated or recorded."""
    from pith.router.v1.policies_pb2 import GetPolicyRequest, SimulateRequest

    from router.cli.document import as_document
    from router.cli.manifest import Manifest

    is_file = policy == STDIO or "/" in policy or policy.endswith((".yaml", ".yml"))
    if name and not is_file:
        raise typer.BadParameter("goes with a file", param_hint="--policy")
    manifest = read_manifest(policy) if is_file else Manifest()
    place, wish = _chosen(policy, manifest, name) if is_file else (0, None)
    with session.router() as router:
        wish = wish or router.call(router.policies.GetPolicy, GetPolicyRequest(name=policy))
        for setting in settings or []:
            _set(wish, setting)
        request, now = SimulateRequest(policy=wish), router_clock(router)
        set_time(request.start_time, from_time, "--from", now)
        set_time(request.end_time, to_time, "--to", now)
        try:
            reply = router.call(router.policies.Simulate, request)
        except CallError as failure:
            raise located(failure, policy, manifest, {"policy": f"policies[{place}]"}) from None
    if session.as_json:
        print_document({"policy": as_document(wish), **as_document(reply)})
    else:
        _print(wish, reply)


def _chosen(file: str, manifest: Manifest, name: str) -> tuple[int, Policy]:
    """The policy of the file that is meant, and which of them it is. Raises LocalError."""
    names = [policy.name for policy in manifest.policies]
    if name and name not in names:
        raise LocalError([f"{file} has no policy {name!r}; it has {', '.join(names) or 'none'}"])
    if not name and len(names) != 1:
        fault = f"{file} has {len(names)} policies: {', '.join(names)}" if names else f"{file} has no policy"
        raise LocalError([fault], next_step="say which with --policy NAME" if names else None)
    index = names.index(name) if name else 0
    return index, manifest.policies[index]


def _set(policy: Policy, setting: str) -> None:
    from router.cli.manifest import ManifestError, assign

    field, sign, value = setting.partition("=")
    if not sign:
        raise typer.BadParameter(f"{setting!r} is not FIELD=VALUE", param_hint="--set")
    try:
        assign(policy, field, value)
    except ManifestError as error:
        raise typer.BadParameter(f"{setting!r}: {error.faults[0].description}", param_hint="--set") from None


def _print(policy: Policy, reply: SimulateResponse) -> None:
    from router.cli.document import value, word

    out = console()
    decided = f"{count(reply.requests)} recorded requests"
    out.print(f"Policy {policy.name} in mode {word(policy, 'mode')} would have decided for {decided}.")
    known = reply.requests_without_energy < reply.requests
    simulated, saving = value(reply, "simulated_grams"), value(reply, "saving")
    out.print(
        details(
            [
                ("CO2e recorded", grams(reply.recorded_grams if known or not reply.requests else None)),
                ("CO2e simulated", UNKNOWN if simulated is None else interval(simulated, grams)),
                ("saved", UNKNOWN if saving is None else interval(saving, percent)),
            ]
        )
    )
    if reply.requests_without_energy:
        out.print(dim(f"The energy of {count(reply.requests_without_energy)} of them is unknown; they are in no sum."))
    if reply.served:
        rows = [
            (
                served.directive,
                word(served, "reason").replace("_", " "),
                count(served.requests),
                percent(served.requests / reply.requests if reply.requests else None),
            )
            for served in sorted(reply.served, key=lambda served: -served.requests)
        ]
        out.print()
        out.print(table(("DIRECTIVE", "REASON", "REQUESTS", "SHARE"), rows, right=("REQUESTS", "SHARE")))
    if reply.assumptions:
        out.print("\nThis rests on:")
        out.print(details(("-", assumption) for assumption in reply.assumptions))
