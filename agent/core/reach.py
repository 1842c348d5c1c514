"""Whether the network reaches what a service listens on, by the service's own lists of addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

EVERYTHING = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}


@dataclass(frozen=True, slots=True)
class AddressFilter:
    """IPAddressDeny= and IPAddressAllow= of a service as networks; what is in both is let in
    (systemd.resource-control(5))."""

    deny: Sequence[str] = ()
    allow: Sequence[str] = ()

    def admits_only_this_host(self, host: str) -> bool:
        """Whether nobody from elsewhere comes to an address that is listened on; `host` may be empty, or a name."""
        try:
            versions = {ipaddress.ip_address(host).version}
        except ValueError:
            versions = {4, 6}
        return all(self._is_closed(version) for version in versions)

    def _is_closed(self, version: int) -> bool:
        deny, allow = (
            [network for network in map(ipaddress.ip_network, networks) if network.version == version]
            for networks in (self.deny, self.allow)
        )
        return EVERYTHING[version] in deny and all(network.is_loopback for network in allow)
