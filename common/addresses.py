"""Addresses as configuration has them: where a service listens, and where its clients find it."""

import ipaddress
from urllib.parse import urlsplit

_UNIX = ("unix:", "unix-abstract:")


def is_unix(address: str) -> bool:
    """Whether it is a Unix socket's."""
    return address.startswith(_UNIX)


def split_address(listen: str) -> tuple[str, int]:
    """Host (without brackets) and port of "HOST:PORT" or "[IPV6]:PORT".

    Raises:
        ValueError: says what is wrong with the address.
    """
    host, colon, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host and not bracketed):
        raise ValueError("must be HOST:PORT, [IPV6]:PORT or unix:PATH")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"has port {port!r}; it must be 0 to 65535")
    return (host[1:-1] if bracketed else host), int(port)


def check_target(address: str) -> None:
    """That a client can reach something at HOST:PORT, [IPV6]:PORT, unix:PATH or dns:///HOST:PORT.

    Raises:
        ValueError: says what is wrong with the address.
    """
    if is_unix(address):
        if not address.partition(":")[2]:
            raise ValueError(f"{address} names no path")
        return
    try:
        port = split_address(address.removeprefix("dns:///"))[1]
    except ValueError as fault:
        raise ValueError(f"{address or 'an empty address'} {fault}") from None
    if port == 0:
        raise ValueError(f"{address} has port 0; it must be 1 to 65535")


def check_url(url: str) -> None:
    """That it is the base of an API: https, or http to this machine alone, without user, query or fragment.

    Raises:
        ValueError: says what is wrong with the URL.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("must be https://HOST[:PORT][/PATH]") from None
    if parts.scheme not in ("https", "http") or not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("must be https://HOST[:PORT][/PATH]")
    if parts.scheme == "http" and not is_loopback(f"[{host}]:0"):
        raise ValueError("is beyond loopback; it must be https")


def is_loopback(listen: str) -> bool:
    """Whether only this machine can reach the address.

    Raises:
        ValueError: the address is not HOST:PORT, [IPV6]:PORT or unix:PATH.
    """
    if is_unix(listen):
        return True
    host = split_address(listen)[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
