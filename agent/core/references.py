"""What `after` and `ready` name, in specs: `vm:NAME`, `path:/srv/disk`, `tcp:HOST:PORT` with IPv6 in brackets."""

from __future__ import annotations

from collections.abc import Iterable

GUEST, PATH, TCP = "vm:", "path:", "tcp:"

RUNNING = "running"
"""A guest with this `ready` is ready as soon as it runs."""


def guests_of(after: Iterable[str]) -> tuple[str, ...]:
    """The names of the guests among references; those of an earlier agent's launches have no `vm:`."""
    return tuple(one.removeprefix(GUEST) for one in after if not one.startswith((PATH, TCP)))


def endpoint(host: str, port: int) -> str:
    """The reference to a TCP port of an address."""
    return f"{TCP}[{host}]:{port}" if ":" in host else f"{TCP}{host}:{port}"


def split_endpoint(reference: str) -> tuple[str, int]:
    """The address and the port of what `endpoint` made."""
    host, _, port = reference.removeprefix(TCP).rpartition(":")
    return host.strip("[]"), int(port)


def place(reference: str) -> str:
    """A reference in a person's words, without its kind: `/srv/disk`, `192.168.0.1:53`."""
    return reference.partition(":")[2]
