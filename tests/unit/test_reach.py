"""Whether a service's address lists let anybody but this host in (systemd.resource-control(5), IPAddressAllow=)."""

from __future__ import annotations

import pytest

from agent.core.reach import AddressFilter

ANY = ("0.0.0.0/0", "::/0")
LOCALHOST = ("127.0.0.0/8", "::1/128")


@pytest.mark.parametrize(
    ("closed", "host", "filtered"),
    [
        (True, "0.0.0.0", AddressFilter(ANY, LOCALHOST)),
        (True, "", AddressFilter(ANY, LOCALHOST)),
        (True, "::", AddressFilter(ANY, ("::1/128",))),
        (True, "metrics.example", AddressFilter(ANY, ())),
        (True, "0.0.0.0", AddressFilter(ANY, ("fd00::/8",))),
        (False, "", AddressFilter(ANY, ("fd00::/8",))),
        (False, "0.0.0.0", AddressFilter(ANY, (*LOCALHOST, "192.0.2.0/24"))),
        (False, "0.0.0.0", AddressFilter(("10.0.0.0/8",), LOCALHOST)),
        (False, "::", AddressFilter(("0.0.0.0/0",), LOCALHOST)),
        (False, "0.0.0.0", AddressFilter(ANY, ANY)),
        (False, "0.0.0.0", AddressFilter((), ())),
    ],
)
def test_only_this_host_comes_in(closed: bool, host: str, filtered: AddressFilter) -> None:
    assert filtered.admits_only_this_host(host) is closed
