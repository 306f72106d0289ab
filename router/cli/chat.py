"""`pithctl chat`: a conversation through the router that shows what each answer cost and why it came out so."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import Session, command
from router.cli.completion import complete_task, complete_tenant
from router.cli.explain import reason_words
from router.cli.failures import CallError, print_failure
from router.cli.output import console, dim, print_line, printable
from router.cli.units import UNKNOWN, count, grams, joules

if TYPE_CHECKING:
    from pith.router.v1.generation_pb2 import Finished, GenerateRequest, Started

    from router.cli.connection import Connection


def register(app: typer.Typer) -> None:
    command(app, "chat")(chat)


def chat(
    session: Session,
    task: Annotated[
        str, typer.Option("--task", metavar="TASK", help="Task of the questions.", autocompletion=complete_task)
    ] = "",
    tenant: Annotated[
        str, typer.Option("--tenant", metavar="TENANT", help="Default: the token's.", autocompletion=complete_tenant)
    ] = "",
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="Default: the router's.")] = "",
    system: Annotated[str, typer.Option("--system", metavar="TEXT", help="System message.")] = "",
    once: Annotated[
        str | None, typer.Option("--once", metavar="TEXT", help="Ask this and end; no conversation.")
    ] = None,
    opt_out: Annotated[bool, typer.Option("--opt-out", help="Have answers without a directive.")] = False,
) -> None:
    """Chats with a model. A line of input is a turn, answers stream; Ctrl-C cancels an answer, Ctrl-D ends."""
    import uuid

    from pith.common.v1.text_pb2 import ROLE_SYSTEM, ROLE_USER, Message
    from pith.router.v1.generation_pb2 import GenerateRequest

    request = GenerateRequest(
        task=task, tenant=tenant, model=model, conversation_id=f"pithctl-{uuid.uuid4()}", opt_out=opt_out
    )
    if system:
        request.messages.append(Message(role=ROLE_SYSTEM, content=system))
    with session.router() as router:
        if once is not None:
            request.messages.append(Message(role=ROLE_USER, content=once))
            _answer(session, router, request)
            return
        for prompt in _prompts():
            request.messages.append(Message(role=ROLE_USER, content=prompt))
            _turn(session, router, request)


def _prompts() -> Iterator[str]:
    """Lines of input that say something; asked for with a prompt where somebody types them."""
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):
            # Gives input() line editing and history.
            import readline  # noqa: F401
    while True:
        try:
            line = input("> " if typed else "").strip()
        except EOFError:
            if typed:
                print()
            return
        except KeyboardInterrupt:
            # Between answers Ctrl-C only drops what was typed so far, as in a shell.
            print()
            continue
        except UnicodeDecodeError:
            print("Error: the line is not UTF-8; it was left out", file=sys.stderr)
            continue
        if line:
            yield line


def _turn(session: Session, router: Connection, request: GenerateRequest) -> None:
    """One question and its answer; a turn that fails or is cancelled is taken out of the conversation."""
    from pith.common.v1.text_pb2 import ROLE_ASSISTANT, Message

    try:
        text = _answer(session, router, request)
    except KeyboardInterrupt:
        request.messages.pop()
        print("\nCancelled; this turn is not part of the conversation.", file=sys.stderr)
    except CallError as failure:
        request.messages.pop()
        print_failure(failure, as_json=session.as_json, options={})
    else:
        request.messages.append(Message(role=ROLE_ASSISTANT, content=text))


def _answer(session: Session, router: Connection, request: GenerateRequest) -> str:
    """Streams the answer to stdout, or prints it whole as one line of JSON; returns its text."""
    from pith.router.v1.generation_pb2 import Finished, Started

    from router.cli.document import as_document

    started, finished, pieces = Started(), Finished(), []
    written = False
    try:
        for event in router.stream(router.generation.StreamGenerate, request):
            if event.HasField("started"):
                started = event.started
            elif event.HasField("finished"):
                finished = event.finished
            else:
                pieces.append(event.delta.text)
                if not session.as_json:
                    sys.stdout.write(printable(event.delta.text))
                    sys.stdout.flush()
                    written = True
    except CallError:
        if written:
            print()
        raise
    text = "".join(pieces)
    if session.as_json:
        document: dict[str, Any] = {"text": text}
        document["started"], document["finished"] = as_document(started), as_document(finished)
        print_line(document)
    else:
        print()
        console().print(dim(_remark(started, finished)))
    return text


def _remark(started: Started, finished: Finished) -> str:
    """One line on the answer: directive and why, tokens, energy and its source, carbon."""
    from pith.common.v1.text_pb2 import FINISH_REASON_ABORTED, FINISH_REASON_LENGTH

    from router.cli.document import word

    decision, usage = started.decision, finished.usage
    parts = [f"{decision.directive or '-'}, {reason_words(decision)}"]
    if decision.model:
        parts.append(f"by {printable(decision.model)}")
    if started.replayed:
        parts.append("repeated from memory")
    parts.append(f"{count(usage.prompt_tokens)} + {count(usage.output_tokens)} tokens")
    if finished.HasField("energy"):
        source = word(finished.energy, "source")
        parts.append(f"{joules(finished.energy.joules)} {source}")
    else:
        parts.append(f"energy {UNKNOWN}")
    if finished.HasField("carbon"):
        carbon = finished.carbon
        parts.append(
            f"{grams(carbon.operational_grams + carbon.embodied_grams)} CO2e at {carbon.intensity.g_per_kwh:.0f} g/kWh"
        )
    else:
        parts.append(f"CO2e {UNKNOWN}")
    if finished.reason == FINISH_REASON_LENGTH:
        parts.append("cut at the token limit")
    elif finished.reason == FINISH_REASON_ABORTED:
        parts.append("aborted")
    return " · ".join(parts)
