"""`pithctl directive`: the texts, and more, that steer how answers are generated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from router.cli import editor, resource, revisions, trial
from router.cli.resource import Kind

if TYPE_CHECKING:
    from pith.router.v1.directives_pb2 import Directive
    from rich.text import Text

app = typer.Typer(help="Texts, and more, that steer how answers are generated.")


def _variable(text: str) -> tuple[str, bool | float | str] | None:
    if not text:
        return None
    from router.cli.manifest import variable

    name, sign, value = text.partition("=")
    if not sign or not name:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
    return name, variable(value)


_FIELDS = {
    "text": Annotated[str | None, typer.Option("--text", metavar="TEXT", help="What the model is told.")],
    "placement": Annotated[
        Literal["tail", "system", "native"] | None,
        typer.Option(
            "--placement",
            help="End of the last user message (keeps prefix caches working), or system message, or variables of the "
            "model's chat template instead of a text.  [new: tail]",
        ),
    ],
    "max_output_tokens": Annotated[
        int | None, typer.Option("--max-output-tokens", min=0, metavar="TOKENS", help="Cap on the answer; 0 is none.")
    ],
    "stop": Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="Ends the answer; repeatable, an empty one clears the list."),
    ],
    "suppressed_words": Annotated[
        list[str] | None,
        typer.Option(
            "--suppressed-word", metavar="WORD", help="Not to appear; repeatable, an empty one clears the list."
        ),
    ],
    "history_messages": Annotated[
        int | None,
        typer.Option("--history-messages", min=0, metavar="COUNT", help="Newest messages to keep; 0 is all."),
    ],
    "template_variables": Annotated[
        list[str] | None,
        typer.Option(
            "--template-variable",
            parser=_variable,
            metavar="NAME=VALUE",
            help="With native placement, e.g. enable_thinking=false; quotes make text of a number; repeatable, an "
            "empty one clears them.",
        ),
    ],
    "model": Annotated[
        str | None,
        typer.Option(
            "--answered-by",
            metavar="MODEL",
            help="Model that answers in the place of the one asked for, name@digest as `pithctl engines` shows it; an "
            "empty one ends that.",
        ),
    ],
}


_MEANINGS = {
    "text": "what the model is told",
    "placement": "tail (of the last user message: prefix caches keep working), system, native (no text, but variables)",
    "max_output_tokens": "cap on the answer; 0 is none",
    "stop": "texts that end the answer, beside the request's own",
    "suppressed_words": "not to appear in the answer",
    "history_messages": "newest messages to keep, beside the system message; 0 is all",
    "template_variables": "of the chat template, with native placement: names with true, false, numbers or texts",
    "model": "name@digest of a model that answers in the place of the one asked for",
}


def variable_words(directive: Directive) -> str:
    """E.g. "enable_thinking=false"."""
    import json

    variables = directive.template_variables
    return ", ".join(f"{name}={json.dumps(variables[name], ensure_ascii=False)}" for name in sorted(variables))


def _row(directive: Directive) -> Sequence[str]:
    from router.cli.document import word

    return (
        directive.name,
        directive.text or variable_words(directive) or "(no text)",
        directive.model or "-",
        word(directive, "placement"),
        str(directive.max_output_tokens or "-"),
        str(directive.revision),
    )


def _facts(directive: Directive) -> Iterable[tuple[str, str | Text]]:
    from router.cli.document import word

    yield "name", directive.name
    yield "text", directive.text or "(no text)"
    yield "placement", word(directive, "placement")
    yield "max output tokens", str(directive.max_output_tokens or "no cap")
    yield "stop", ", ".join(map(repr, directive.stop)) or "-"
    yield "suppressed words", ", ".join(directive.suppressed_words) or "-"
    yield "history messages", str(directive.history_messages or "all")
    yield "template variables", variable_words(directive) or "-"
    yield "answered by", directive.model or "the model asked for"


KIND = Kind(
    noun="directive",
    plural="directives",
    options=_FIELDS,
    meanings=_MEANINGS,
    headings=("NAME", "TEXT", "ANSWERED BY", "PLACEMENT", "MAX TOKENS", "REVISION"),
    right=("MAX TOKENS", "REVISION"),
    row=_row,
    facts=_facts,
    in_force="Closed until a policy allows it and the evaluator has judged what is new.",
    once_deleted="No policy may allow it.",
    once_changed="The quality bounds of the earlier revision no longer count: it is closed until it is judged anew.",
)
resource.register(app, KIND)
editor.register(app, KIND)
revisions.register(app, KIND)
trial.register(app, _FIELDS)
