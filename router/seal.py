"""Sealed decisions: what a caller hands back with its outcome, so that no router has to remember a decision.

A seal is base64url of version, fields and keyed BLAKE2b of 128 bits (RFC 7693). It hides nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as BadBase64
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc

from common.errors import PithError
from router.directives.decide import Reason

VALID_FOR = timedelta(hours=24)
"""The contract's promise."""
MAX_SEAL_CHARACTERS = 2_048
"""The contract's promise too, which JSON in UTF-8 could not keep: four ids of 128 characters, in any script, and three
names of 64 must have room."""
KEY_BYTES = 32

_VERSION = 3
_MAC_BYTES = 16
_FIXED = struct.Struct(">BqIIB")  # version, microseconds since the epoch, two revisions, flags
_LENGTHS = struct.Struct(">9H")  # characters of each text, where all are ASCII; the texts follow, joined
_TEXT = struct.Struct(">H")  # before each text otherwise: twice its characters, and 1 where not all of it are ASCII
_ELIGIBLE, _SAMPLE_WANTED, _PLAIN = 1, 2, 4
_ASCII, _UNICODE = 0x80, 0x110000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class SealedDecision:
    """What the ledger will need to know of a decision that its caller carries out."""

    tenant: str
    request_id: str
    task: str
    model: str
    """As cells have it, where the router knows; empty where neither it nor the caller does."""
    directive: str
    directive_revision: int
    reason: Reason
    planned: str
    policy: str
    """Empty where none matched."""
    policy_revision: int
    eligible: bool
    evaluation_sample_id: str
    sample_wanted: bool
    decided_at: datetime


class Sealer:
    """Seals decisions and opens what any holder of the same key has sealed.

    Args:
        key: `KEY_BYTES` random bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, decision: SealedDecision) -> str:
        """At most `MAX_SEAL_CHARACTERS` where ids have at most 128 characters and names 64 (in ASCII)."""
        content = _encode(decision)
        return urlsafe_b64encode(content + self._mac(content)).decode().rstrip("=")

    def open(self, seal: str, now: datetime) -> SealedDecision:
        """Raises PithError NOT_FOUND for one that is changed, of another key, or older than `VALID_FOR`."""
        raw = _decode_base64(seal)
        content, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(content)) or content[:1] != bytes([_VERSION]):
            raise unknown_decision()
        decision = _decode(content)
        if now - decision.decided_at >= VALID_FOR:
            raise unknown_decision()
        return decision

    def _mac(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, key=self._key, digest_size=_MAC_BYTES).digest()


def unknown_decision() -> PithError:
    """What a caller is told of a decision that is not known, or not its own."""
    return PithError(
        grpc.StatusCode.NOT_FOUND,
        "RESOURCE_NOT_FOUND",
        f"decision_id: names no decision of the last {VALID_FOR // timedelta(hours=1)} hours",
        metadata={"resource": "decision_id"},
    )


def _decode_base64(seal: str) -> bytes:
    if len(seal) > MAX_SEAL_CHARACTERS or not seal.isascii():
        raise unknown_decision()
    try:
        raw = urlsafe_b64decode(seal + "=" * (-len(seal) % 4))
    except BadBase64:
        raise unknown_decision() from None
    # Characters that decoding skips, and bits of the last one that it drops, would let a changed seal pass.
    if urlsafe_b64encode(raw).decode().rstrip("=") != seal:
        raise unknown_decision()
    return raw


def _encode(decision: SealedDecision) -> bytes:
    texts = (
        decision.tenant,
        decision.request_id,
        decision.task,
        decision.model,
        decision.directive,
        decision.reason.value,
        decision.planned,
        decision.policy,
        decision.evaluation_sample_id,
    )
    # Such texts are short enough as they are, and that is far quicker: it is done for every decision.
    joined = "".join(texts)
    plain = joined.isascii()
    fixed = _FIXED.pack(
        _VERSION,
        (decision.decided_at - _EPOCH) // _MICROSECOND,
        decision.directive_revision,
        decision.policy_revision,
        _ELIGIBLE * decision.eligible + _SAMPLE_WANTED * decision.sample_wanted + _PLAIN * plain,
    )
    if plain:
        return fixed + _LENGTHS.pack(*map(len, texts)) + joined.encode()
    return fixed + b"".join(map(_pack, texts))


def _decode(content: bytes) -> SealedDecision:
    _, microseconds, directive_revision, policy_revision, flags = _FIXED.unpack_from(content)
    texts = (_unpack_plain if flags & _PLAIN else _unpack)(content, _FIXED.size)
    tenant, request_id, task, model, directive, reason, planned, policy, evaluation_sample_id = texts
    return SealedDecision(
        tenant=tenant,
        request_id=request_id,
        task=task,
        model=model,
        directive=directive,
        directive_revision=directive_revision,
        reason=Reason(reason),
        planned=planned,
        policy=policy,
        policy_revision=policy_revision,
        eligible=bool(flags & _ELIGIBLE),
        evaluation_sample_id=evaluation_sample_id,
        sample_wanted=bool(flags & _SAMPLE_WANTED),
        decided_at=_EPOCH + microseconds * _MICROSECOND,
    )


def _pack(text: str) -> bytes:
    """A number with a character a digit: 7 bits each in ASCII, else 20.1, where UTF-8 may take 32."""
    base = _ASCII if text.isascii() else _UNICODE
    number = 0
    for character in text:
        number = number * base + ord(character)
    return _TEXT.pack(2 * len(text) + (base == _UNICODE)) + number.to_bytes(_size_bytes(len(text), base), "big")


def _unpack_plain(content: bytes, at: int) -> Iterator[str]:
    lengths = _LENGTHS.unpack_from(content, at)
    at += _LENGTHS.size
    for length in lengths:
        yield content[at : at + length].decode()
        at += length


def _unpack(content: bytes, at: int) -> Iterator[str]:
    while at < len(content):
        (head,) = _TEXT.unpack_from(content, at)
        length, base = head >> 1, _UNICODE if head & 1 else _ASCII
        at += _TEXT.size
        end = at + _size_bytes(length, base)
        number = int.from_bytes(content[at:end], "big")
        characters = [""] * length
        for index in reversed(range(length)):
            number, code = divmod(number, base)
            characters[index] = chr(code)
        yield "".join(characters)
        at = end


def _size_bytes(length: int, base: int) -> int:
    """Of the largest number of that many digits."""
    largest: int = base**length - 1
    return (largest.bit_length() + 7) // 8
