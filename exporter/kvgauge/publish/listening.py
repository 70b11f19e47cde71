"""Takes the address before anything slow is loaded: a port that is in use fails the start at once, and a scrape that
comes early waits in the backlog instead of being refused."""

import socket


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Raises OSError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)
