"""Who calls, as whom, and until when: roles, bearer tokens and the context of the request in hand."""

import hashlib
import hmac
import json
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from common.errors import unauthenticated

REQUEST_ID_KEY = "x-request-id"
TENANT_KEY = "x-tenant"
DEFAULT_TENANT = "default"
_BEARER = "Bearer "


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

    `deadline` is a moment of `time.monotonic()`, None where the call has no end of its own.
    """

    request_id: str
    principal: Principal
    deadline: float | None = None

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


class TokenEntry(BaseModel):
    """One entry of a tokens file: the SHA-256 of a token (lower-case hex), never the token itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    role: Role
    tenant: str = Field(default=DEFAULT_TENANT, min_length=1)
    name: str = Field(min_length=1)


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
    """Tells the caller from a call's metadata.

    Args:
        tokens: those that are known. None: no token is asked for, and every caller is an admin of the
            tenant that metadata `x-tenant` names (default "default"); `ServiceConfig` allows that on loopback
            only.
    """

    def __init__(self, tokens: Sequence[TokenEntry] | None) -> None:
        self._known = (
            None if tokens is None else [(bytes.fromhex(t.sha256), Principal(t.name, t.role, t.tenant)) for t in tokens]
        )

    @classmethod
    def from_file(cls, path: Path | None) -> "Authenticator":
        """From a tokens file (see `read_tokens`); None asks for no tokens."""
        return cls(None if path is None else read_tokens(path))

    def authenticate(self, metadata: Mapping[str, str | bytes]) -> Principal:
        """The caller.

        Raises:
            PithError: UNAUTHENTICATED when a token is needed and missing, malformed or unknown.
        """
        if self._known is None:
            tenant = metadata.get(TENANT_KEY)
            return Principal("local", Role.ADMIN, tenant if isinstance(tenant, str) and tenant else DEFAULT_TENANT)
        given = metadata.get("authorization")
        if not isinstance(given, str):
            raise unauthenticated("a token is needed: metadata authorization: Bearer TOKEN")
        if not given.startswith(_BEARER):
            raise unauthenticated("metadata authorization must be: Bearer TOKEN")
        digest = hashlib.sha256(given[len(_BEARER) :].encode()).digest()
        found = None
        # Every entry is compared, and each in constant time: the time taken says nothing about the tokens.
        for known, principal in self._known:
            if hmac.compare_digest(known, digest):
                found = principal
        if found is None:
            raise unauthenticated("the token is not known")
        return found
