"""Addresses: what can be listened on, what can be reached, and what only this machine can reach."""

from __future__ import annotations

import pytest

from common.addresses import check_target, check_url, is_loopback, split_address


@pytest.mark.parametrize(
    ("listen", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.9.10:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/tmp/pith.sock", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("router:7600", False),
        ("localhost.example.org:1", False),
        ("127.0.0.1.example.org:1", False),
    ],
)
def test_loopback_is_told_from_the_rest(listen: str, loopback: bool) -> None:
    assert is_loopback(listen) is loopback


@pytest.mark.parametrize(
    "listen", ["", "7600", ":7600", "localhost", "localhost:", "localhost:x", "h:65536", "::1:7600", "h:-1"]
)
def test_a_malformed_address_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match=r"must be HOST:PORT|has port"):
        split_address(listen)


@pytest.mark.parametrize("address", ["h:1", "[::1]:7500", "unix:/run/engine", "unix-abstract:engine", "dns:///h:65535"])
def test_what_a_client_can_reach(address: str) -> None:
    check_target(address)


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("", "an empty address must be HOST:PORT"),
        ("10.0.0.1", "10.0.0.1 must be HOST:PORT"),
        ("::1:7500", "::1:7500 must be HOST:PORT"),
        ("h:0", "h:0 has port 0; it must be 1 to 65535"),
        ("h:70000", "h:70000 has port '70000'"),
        ("dns:///h", "dns:///h must be HOST:PORT"),
        ("http://h:1", "http://h:1 must be HOST:PORT"),
        ("unix:", "unix: names no path"),
    ],
)
def test_an_address_that_no_client_can_reach_is_named(address: str, fault: str) -> None:
    with pytest.raises(ValueError, match=f"^{fault}"):
        check_target(address)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.org",
        "https://api.example.org:8443/v3/",
        "http://127.0.0.1:80",
        "http://[::1]/",
        "http://localhost",
    ],
)
def test_an_api_is_called_over_tls_or_on_this_machine(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("", "must be https://HOST"),
        ("api.example.org", "must be https://HOST"),
        ("ftp://api.example.org", "must be https://HOST"),
        ("https://", "must be https://HOST"),
        ("https://host:port", "must be https://HOST"),
        ("https://host:99999", "must be https://HOST"),
        ("https://[::1", "must be https://HOST"),
        ("https://user:secret@host", "must be https://HOST"),
        ("https://host?token=1", "must be https://HOST"),
        ("http://api.example.org", "is beyond loopback; it must be https"),
        ("http://127.0.0.1.example.org", "is beyond loopback; it must be https"),
    ],
)
def test_a_wrong_url_is_named_without_what_it_holds(url: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as raised:
        check_url(url)
    assert "secret" not in str(raised.value)
