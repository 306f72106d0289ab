"""What a server can do to a client of it, and what the client says of that."""

from datetime import UTC, datetime

import pytest

from common.carbon.json_api import MAX_BODY_BYTES, JsonApi
from common.carbon.source import SourceError
from tests.common.carbon.grid_api import Answer, GridApi, said

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECRET = "what the other side wrote"


async def fault_of(answer: Answer, timeout_seconds: float = 60.0) -> SourceError:
    async with GridApi(lambda _: answer) as server:
        api = JsonApi(server.url, timeout_seconds)
        try:
            with pytest.raises(SourceError) as raised:
                await api.get("/x", NOW)
        finally:
            await api.close()
    assert SECRET not in str(raised.value)
    return raised.value


async def test_an_answer_comes_through_and_headers_and_parameters_are_sent() -> None:
    async with GridApi(lambda _: said({"a": [1, None]})) as server:
        api = JsonApi(f"{server.url}/base/", 60.0, {"auth-token": "t"})
        assert await api.get("/x", NOW, {"zone": "DE&x=1"}) == {"a": [1, None]}
        await api.close()
    (asked,) = server.asked
    assert (asked.path, asked.query, asked.headers["auth-token"]) == ("/base/x", {"zone": "DE&x=1"}, "t")


@pytest.mark.parametrize(
    ("answer", "failure", "text", "wait_seconds"),
    [
        (said({"error": SECRET}, 401), "refused", "HTTP 401: the token is not accepted", 0),
        (said({"error": SECRET}, 403), "refused", "HTTP 403: the token is not accepted", 0),
        (said({"error": SECRET}, 404), "refused", "HTTP 404: no such zone", 0),
        (said({}, 429), "limited", "HTTP 429: too many requests", 0),
        (said({}, 429, retry_after="120"), "limited", "HTTP 429", 120),
        (said({}, 429, retry_after="Sun, 01 Mar 2026 12:10:00 GMT"), "limited", "HTTP 429", 600),
        (said({}, 429, retry_after="Sun, 01 Mar 2026 11:00:00 GMT"), "limited", "HTTP 429", 0),
        (said({}, 429, retry_after="soon"), "limited", "HTTP 429", 0),
        (said({}, 429, retry_after="9" * 40), "limited", "HTTP 429", 86400),
        (said({}, 500), "failed", "HTTP 500", 0),
        (said({}, 503, retry_after="7"), "failed", "HTTP 503", 7),
        # To follow it would hand the token to who knows whom.
        (said({}, 302, location="http://127.0.0.1:1/"), "refused", "HTTP 302", 0),
        (said({}, 204), "refused", "HTTP 204", 0),
        (Answer(body=b'{"a": 1'), "malformed", "is not JSON", 0),
        (Answer(body=b"<html>" + SECRET.encode()), "malformed", "is not JSON", 0),
        (Answer(body=b"\xff\xfe\x00"), "malformed", "is not JSON", 0),
        (Answer(body=b'{"a": NaN}'), "malformed", "is not JSON", 0),
        (Answer(body=b"[" * 200_000), "malformed", "is not JSON", 0),
        (Answer(body=b"9" * 10_000), "malformed", "is not JSON", 0),
        (Answer(headers={"content-encoding": "gzip"}), "malformed", "is compressed", 0),
        (Answer(endless=True), "malformed", f"is larger than {MAX_BODY_BYTES} bytes", 0),
        (Answer(headers={"content-length": "9"}), "failed", "cannot be reached (RemoteProtocolError)", 0),
    ],
)
async def test_a_fault_is_named_and_the_wait_that_is_asked_for_is_known(
    answer: Answer, failure: str, text: str, wait_seconds: float
) -> None:
    fault = await fault_of(answer)
    assert (fault.failure, fault.retry_after_seconds) == (failure, wait_seconds)
    assert text in str(fault)


@pytest.mark.parametrize(
    "answer", [Answer(hang=True, body=b'{"a"'), Answer(hang=True, body=b""), Answer(drips=True, body=b'{"a"')]
)
async def test_an_answer_that_does_not_end_is_given_up(answer: Answer) -> None:
    fault = await fault_of(answer, timeout_seconds=0.2)
    assert (fault.failure, str(fault)) == ("timeout", "no answer within 0.2 s")


async def test_nobody_is_there() -> None:
    async with GridApi(lambda _: said({})) as server:
        pass
    api = JsonApi(server.url, 60.0)
    with pytest.raises(SourceError, match=r"cannot be reached \(ConnectError\)") as raised:
        await api.get("/x", NOW)
    assert raised.value.failure == "failed"
    await api.close()
