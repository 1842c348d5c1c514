"""Published ports, as specs have them: `80/tcp`, `1234:22/tcp`, `5000-5010/udp`, `192.0.2.1:80:8080/tcp`.

The text is canonical: it names the protocol always, the guest's port where it is another one, and the address of the
host that is listened on where it is not every one, in brackets if it is IPv6.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

EVERY_ADDRESS = {"0.0.0.0": 4, "::": 6}
"""What is written for every address of one family, and its IP version."""

MOST_CARRIED = 1000
"""So many ports of a range haproxy may carry: each takes a socket of its own for each address."""


@dataclass(frozen=True, slots=True)
class Publication:
    """Ports `first` to `last` of the host that lead to a guest, the first of them to its port `guest_port`.

    `listen`: the address of the host, empty for all, `0.0.0.0` or `::` for all of a family.
    """

    proto: str
    first: int
    last: int
    guest_port: int
    listen: str = ""

    @property
    def is_range(self) -> bool:
        """Whether it is more than one port."""
        return self.first != self.last

    @property
    def versions(self) -> frozenset[int]:
        """The IP versions that it is for."""
        if not self.listen:
            return frozenset({4, 6})
        return frozenset({6 if ":" in self.listen else 4})

    @property
    def address(self) -> str:
        """The one address that is listened on, empty for all of a family or of both."""
        return "" if self.listen in EVERY_ADDRESS else self.listen

    @property
    def can_be_carried(self) -> bool:
        """Whether a program of the host can carry it from IPv6 to IPv4."""
        return self.proto == "tcp" and self.last - self.first < MOST_CARRIED

    def meets(self, other: Publication) -> bool:
        """Whether neither is more precise for a packet that could be for both; one address goes before all of them."""
        return (
            self.proto == other.proto
            and self.first <= other.last
            and other.first <= self.last
            and bool(self.versions & other.versions)
            and self.address == other.address
        )

    def __str__(self) -> str:
        listen = f"[{self.listen}]:" if ":" in self.listen else f"{self.listen}:" if self.listen else ""
        ports = f"{self.first}-{self.last}" if self.is_range else str(self.first)
        guest = "" if self.guest_port == self.first else f":{self.guest_port}"
        return f"{listen}{ports}{guest}/{self.proto}"


@lru_cache(4096)
def publication(text: str) -> Publication:
    """What `str()` of a publication says; ValueError for anything else."""
    rest, _, proto = text.rpartition("/")
    listen = ""
    if rest.startswith("["):
        listen, _, rest = rest[1:].partition("]:")
    elif rest.count(".") == 3:
        listen, _, rest = rest.partition(":")
    ports, _, guest = rest.partition(":")
    first, _, last = ports.partition("-")
    return Publication(proto, int(first), int(last or first), int(guest or first), listen)
