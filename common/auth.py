"""Who calls, as whom, and until when: roles, bearer tokens and the context of the request in hand."""

import asyncio
import hashlib
import json
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from common.clock import Clock, SystemClock
from common.errors import unauthenticated
from common.limits import MAX_ID_CHARACTERS

REQUEST_ID_KEY = "x-request-id"
TENANT_KEY = "x-tenant"
DEFAULT_TENANT = "default"
TOKENS_POLL_SECONDS = 1.0
"""Wall time; a token that was taken out of a tokens file is refused within 5 s."""
_BEARER = "Bearer "

log = structlog.get_logger("auth")


class Role(StrEnum):
    """What a token may do. An RPC names the roles that may call it; `ADMIN` may call every one."""

    CLIENT = "client"
    EVALUATOR = "evaluator"
    ENGINE = "engine"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller: `name` is for logs, `tenant` is who is billed and whose policy holds."""

    name: str
    role: Role
    tenant: str


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What holds for the request in hand. Tasks started while handling it inherit it.

    `deadline` is a moment of `time.monotonic()`, None where the call has no end of its own. `notes` are more fields of
    its line in the access log: never what people or models wrote.
    """

    request_id: str
    principal: Principal
    deadline: float | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def remaining_seconds(self) -> float | None:
        """Wall seconds until the deadline, at least 0; None without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


_current: ContextVar[RequestContext | None] = ContextVar("pith_request", default=None)


def current_request() -> RequestContext | None:
    """The request in hand, None outside of one."""
    return _current.get()


def enter_request(request: RequestContext) -> None:
    """Makes `request` the one in hand for this task and those it starts."""
    _current.set(request)


def note_asked(request_id: str) -> None:
    """Has the access log name the caller's own id of what it asks for, beside the call's, in as far as it is fit to."""
    request = current_request()
    if request is not None and request_id and request_id.isprintable():
        request.notes["asked"] = request_id[:MAX_ID_CHARACTERS]


class TokenEntry(BaseModel):
    """A token as it is kept: its SHA-256 (lower-case hex), never the token itself. An entry of a tokens file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    role: Role
    tenant: str = Field(default=DEFAULT_TENANT, min_length=1)
    name: str = Field(min_length=1)
    expires_at: AwareDatetime | None = None


_ENTRIES = TypeAdapter(list[TokenEntry])


def read_tokens(path: Path) -> Sequence[TokenEntry]:
    """Reads a tokens file: TOML with `[[tokens]]` tables, or JSON with a list of the same.

    Raises:
        ValueError: names the file, the entry and the field at fault; never shows a value.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        entries = document.get("tokens", []) if isinstance(document, dict) else document
        tokens = _ENTRIES.validate_python(entries)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        fault = error.errors(include_input=False, include_context=False, include_url=False)[0]
        where = ".".join(str(part) for part in ("tokens", *fault["loc"]))
        raise ValueError(f"{path}: {where}: {fault['msg']}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not tokens:
        raise ValueError(f"{path}: no tokens; at least one [[tokens]] entry is needed")
    if len({token.sha256 for token in tokens}) < len(tokens):
        raise ValueError(f"{path}: two entries have the same sha256")
    return tokens


class Authenticator:
    """Tells the caller from a call's metadata. Tokens come from a file and, in the router, from its database too.

    Args:
        tokens: those that are known. None: no token is asked for, whatever others are put, and every caller is an
            admin of the tenant that metadata `x-tenant` names (default "default"); `ServiceConfig` allows that on
            loopback only.
        clock: tells when a token has expired.
    """

    def __init__(self, tokens: Sequence[TokenEntry] | None, clock: Clock | None = None) -> None:
        self.open = tokens is None
        """No token is asked for."""
        self._clock = clock or SystemClock()
        self._path: Path | None = None
        self._seen = b""
        self._fault = ""
        self._of_file: Sequence[TokenEntry] = tokens or ()
        self._stored: Sequence[TokenEntry] | None = None
        self._known: Mapping[bytes, tuple[Principal, float | None]] = {}
        self._renew()

    @classmethod
    def from_file(cls, path: Path | None, clock: Clock | None = None) -> "Authenticator":
        """From a tokens file (see `read_tokens`), which `watch` then follows; None asks for no tokens."""
        if path is None:
            return cls(None, clock)
        # Before it is parsed: what changes meanwhile is seen as a change.
        seen = path.read_bytes() if path.is_file() else b""
        auth = cls(read_tokens(path), clock)
        auth._path, auth._seen = path, seen
        return auth

    def is_of_file(self, name: str) -> bool:
        """Whether the tokens file has a token of that name."""
        return any(token.name == name for token in self._of_file)

    def put_stored(self, tokens: Sequence[TokenEntry]) -> None:
        """Has these known besides those of the file, in place of all that were put before."""
        self._stored = tokens
        self._renew()

    async def watch(self, poll_seconds: float = TOKENS_POLL_SECONDS) -> None:
        """Takes in every change of the tokens file, until cancelled; a broken file leaves all as it was, and is logged.

        Args:
            poll_seconds: wall time between two looks.
        """
        while self._path is not None:
            await asyncio.sleep(poll_seconds)
            await self.reload()

    async def reload(self) -> None:
        """Reads the tokens file, if there is one and it has changed."""
        if self._path is None:
            return
        try:
            seen = await asyncio.to_thread(self._path.read_bytes)
            if seen == self._seen:
                return
            tokens = await asyncio.to_thread(read_tokens, self._path)
        except (ValueError, OSError, RecursionError) as error:
            if str(error) != self._fault:
                log.error("tokens file cannot be used; those known before stay in force", fault=str(error))
            self._fault = str(error)
            return
        self._seen, self._of_file, self._fault = seen, tokens, ""
        self._renew()
        log.info("tokens file read", tokens=len(tokens))

    def authenticate(self, metadata: Mapping[str, str | bytes]) -> Principal:
        """The caller.

        Raises:
            PithError: UNAUTHENTICATED when a token is needed and missing, malformed, unknown or expired.
        """
        if self.open:
            tenant = metadata.get(TENANT_KEY)
            return Principal("local", Role.ADMIN, tenant if isinstance(tenant, str) and tenant else DEFAULT_TENANT)
        given = metadata.get("authorization")
        if not isinstance(given, str):
            raise unauthenticated("a token is needed: metadata authorization: Bearer TOKEN")
        if not given.startswith(_BEARER):
            raise unauthenticated("metadata authorization must be: Bearer TOKEN")
        # How long the look-up takes tells something about the digests that are known, and nothing about the tokens:
        # nobody can choose a token by its digest.
        found = self._known.get(hashlib.sha256(given[len(_BEARER) :].encode()).digest())
        if found is None:
            where = "" if self._stored is not None else ": this service knows the tokens of its tokens file"
            raise unauthenticated(f"the token is not known{where}")
        principal, expires_at = found
        if expires_at is not None and self._clock.now().timestamp() >= expires_at:
            raise unauthenticated("the token has expired")
        return principal

    def _renew(self) -> None:
        # Those of the file last: what is in it holds, whatever a database says.
        self._known = {
            bytes.fromhex(token.sha256): (
                Principal(token.name, token.role, token.tenant),
                None if token.expires_at is None else token.expires_at.timestamp(),
            )
            for token in (*(self._stored or ()), *self._of_file)
        }
