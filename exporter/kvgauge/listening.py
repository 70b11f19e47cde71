"""Takes the address before anything slow is loaded: a port that is in use fails the start at once, and a scrape that
comes early waits in the backlog instead of being refused."""

import ipaddress
import socket

from kvgauge.complaints import InputError


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Raises OSError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's delay off only where it is: without it every answer on a
    # kept-alive connection waits 40 ms for the client's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def bind_for(setting: str, host: str, port: int) -> socket.socket:
    """A listening socket on the port that a setting names. Raises InputError, which names it."""
    try:
        return bind(host, port)
    except OSError as error:
        raise InputError(f"{setting}: cannot serve on {host}:{port}: {error.strerror}") from None


def local_url(listener: socket.socket) -> str:
    """Where this machine reaches it: its own address, or the loopback's where it listens on all."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        return f"http://127.0.0.1:{port}" if address.version == 4 else f"http://[::1]:{port}"
    return f"http://{host}:{port}" if address.version == 4 else f"http://[{host}]:{port}"
