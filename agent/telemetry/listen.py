"""Where monitoring is listened for: an address of this host, and what must be said of it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from agent.core.errors import AgentError


class ListenError(AgentError):
    """The address to listen on is not one, or what it takes is not to be had; the agent goes on without metrics."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen. An empty host means every address; port 0 lets the kernel choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this host can reach it; of a name other than `localhost` that is not known."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_listen(text: str) -> Listen:
    """`127.0.0.1:9177`, `[::1]:9177` or `:9177` as an address. Raises ListenError with what is wrong."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ListenError(f'--listen {text}: put an IPv6 address in brackets, as in "[::1]:9177"')
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ListenError(f'--listen {text}: want HOST:PORT with a port from 0 to 65535, as in "127.0.0.1:9177"')
    return Listen(host, int(port))
