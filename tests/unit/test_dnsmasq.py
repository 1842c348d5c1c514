"""What dnsmasq is told of a bridge and of the NICs on it, word for word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.desired import BridgeSpec, Desired, DhcpSpec, DnsSpec, NicSpec, VmSpec
from agent.core.observed import Observed, VmState
from agent.core.services.dnsmasq import (
    LeaseHost,
    addresses_taken_twice,
    dnsmasq_services,
    dnsmasq_spec,
    pool_size,
    served_bridges,
)
from agent.core.services.leases import Lease, parse_leases, unexpired
from agent.core.services.spec import needs_reload, needs_restart

DHCP = DhcpSpec("10.0.0.100", "10.0.0.150", 259200)
BRIDGE = BridgeSpec(
    "br0", "02::1", addresses=("10.0.0.1/24", "fd00::1/64"), dhcp=DHCP, dns=DnsSpec(("9.9.9.9", "2620:fe::fe"), "lan")
)
WEB = LeaseHost("web's lan", "web", ("02:00:00:00:00:02",), ("10.0.0.100", "fd00::100"))
DB = LeaseHost("db's lan", "db", ("02:00:00:00:00:03",))


def nic(id_: str, mac: str, *addresses: str, bridge: str = "br0") -> NicSpec:
    return NicSpec(id_, bridge, mac, id_, 0, address=addresses)


def vm(name: str, *nics: NicSpec) -> VmSpec:
    return VmSpec(name, f"uuid-{name}", 1, nics=nics)


def texts(bridge: BridgeSpec, *hosts: LeaseHost) -> dict[str, str]:
    return {file.name: file.text for file in dnsmasq_spec(bridge, hosts).files}


def test_the_whole_configuration() -> None:
    assert texts(BRIDGE, WEB, DB) == {
        "dnsmasq.conf": """\
# Made by vmhost-agent for br0; whatever is written here is lost.
keep-in-foreground
pid-file
log-facility=-
interface=br0
except-interface=lo
bind-interfaces
no-hosts
addn-hosts=@RUN@/hosts
domain-needed
bogus-priv
cache-size=1000
no-resolv
server=9.9.9.9
server=2620:fe::fe
domain=lan
local=/lan/
expand-hosts
dhcp-range=10.0.0.100,10.0.0.150,255.255.255.0,259200
dhcp-lease-max=1051
dhcp-leasefile=/dev/stdin
dhcp-hostsfile=@RUN@/static-leases
dhcp-ignore-names=tag:!known
dhcp-ignore-names=tag:nameless
dhcp-authoritative
""",
        "static-leases": "02:00:00:00:00:02,10.0.0.100,web\n02:00:00:00:00:03,db\n",
        "hosts": "10.0.0.100 web\nfd00::100 web\n",
    }


def test_dhcp_alone_listens_for_no_names_and_dns_alone_has_no_right_but_to_its_port() -> None:
    dhcp = dnsmasq_spec(replace(BRIDGE, dns=None), (WEB,))
    assert [file.name for file in dhcp.files] == ["dnsmasq.conf", "static-leases"]
    assert "\nport=0\n" in dhcp.files[0].text
    assert dhcp.kept == "leases/br0"
    dns = dnsmasq_spec(replace(BRIDGE, dhcp=None, dns=DnsSpec()), (WEB,))
    assert [file.name for file in dns.files] == ["dnsmasq.conf", "hosts"]
    assert dns.capabilities == ("net_bind_service",)
    assert dns.kept == ""
    assert not {"no-resolv", "expand-hosts"} & set(dns.files[0].text.splitlines())
    assert "no-resolv" in texts(replace(BRIDGE, dns=DnsSpec(())))["dnsmasq.conf"]


def test_where_others_may_serve_too_it_does_not_speak_for_all() -> None:
    assert "dhcp-authoritative" not in texts(replace(BRIDGE, ports=("eth1",)))["dnsmasq.conf"]


def test_who_gets_which_name_and_address() -> None:
    wanted = {
        "web": vm("web", nic("lan", "02::2", "10.0.0.100"), nic("two", "02::3"), nic("far", "02::4", bridge="br9")),
        "WEB": vm("WEB", nic("lan", "02::5")),
    }
    runs = {
        "web": VmState(vm("web", nic("lan", "02::99", "10.0.0.100")), alive=True),
        "gone": VmState(vm("gone", nic("lan", "02::6", "10.0.0.7")), alive=True),
        "dead": VmState(vm("dead", nic("lan", "02::7")), alive=False),
    }
    served = served_bridges(Desired({"br0": BRIDGE}, wanted), Observed(vms=runs), {"br0": BRIDGE})
    hosts = {name: found.hosts for name, found in served.items()}
    assert hosts == {
        "br0": (
            LeaseHost("WEB's lan", "WEB", ("02::5",)),
            LeaseHost("gone's lan", "gone", ("02::6",), ("10.0.0.7",)),
            LeaseHost("web's lan", "web-lan", ("02::2", "02::99"), ("10.0.0.100",)),
            LeaseHost("web's two", "web-two", ("02::3",)),
        )
    }
    assert "02::2,02::99,10.0.0.100,web-lan\n" in texts(BRIDGE, *hosts["br0"])["static-leases"]


def test_an_address_is_given_once_and_only_within_the_bridge_s_networks() -> None:
    twin = LeaseHost("twin's lan", "twin", ("02::4",), ("10.0.0.100",))
    host = LeaseHost("host's lan", "host", ("02::5",), ("10.0.0.1",))
    far = LeaseHost("far's lan", "far", ("02::6",), ("10.9.9.9", "fd99::1"))
    assert list(addresses_taken_twice(BRIDGE, (WEB, twin, host, far))) == [
        ("10.0.0.100", "web's lan", "twin's lan"),
        ("10.0.0.1", "br0 itself", "host's lan"),
    ]
    found = texts(BRIDGE, WEB, twin, host, far)
    assert found["static-leases"] == "02:00:00:00:00:02,10.0.0.100,web\n02::4,twin\n02::5,host\n02::6,far\n"
    assert found["hosts"] == "10.0.0.100 web\nfd00::100 web\n10.9.9.9 far\nfd99::1 far\n"


def test_the_pool_holds_the_range_and_what_is_given_outside_of_it() -> None:
    outside = LeaseHost("db's lan", "db", ("02::9",), ("10.0.0.7",))
    assert pool_size(BRIDGE, (WEB, DB, outside)) == 52
    assert pool_size(replace(BRIDGE, dhcp=None), (WEB,)) == 0


def test_hosts_are_read_again_and_all_else_wants_a_start() -> None:
    runs = dnsmasq_spec(BRIDGE, (WEB,))
    hosts = dnsmasq_spec(BRIDGE, (WEB, DB))
    assert (needs_restart(runs, hosts), needs_reload(runs, hosts)) == (False, True)
    longer = dnsmasq_spec(replace(BRIDGE, dhcp=replace(DHCP, lease_s=7200)), (WEB,))
    assert needs_restart(runs, longer)
    assert not needs_reload(runs, dnsmasq_spec(BRIDGE, (WEB,)))


def test_a_bridge_that_asks_for_nothing_has_no_service() -> None:
    bridges = {"br0": replace(BRIDGE, dhcp=None, dns=None), "br1": replace(BRIDGE, name="br1")}
    assert list(dnsmasq_services(Desired(bridges), Observed(), bridges)) == ["dnsmasq-br1"]


def test_leases_are_read_and_what_is_torn_is_left_out() -> None:
    text = """\
1795281800 16:64:55:25:86:5C 10.0.0.143 web 01:16:64:55:25:86:5c
0 06-02:00:00:00:00:09 10.0.0.144 * *
1795281800 02:00:00:00:00:03 10.0.0.145
duid 00:01:00:01
1795281800 12345 fd00::5 web 00:01
1795281800 02:00:00:00:00:04 10.0.0."""
    web = Lease("16:64:55:25:86:5c", "10.0.0.143", "web", 1795281800)
    for_ever = Lease("02:00:00:00:00:09", "10.0.0.144")
    assert parse_leases(text) == (web, for_ever)
    assert unexpired((web, for_ever), 1795281800.0) == (for_ever,)
    assert unexpired((web, for_ever), 1795281799.0) == (web, for_ever)


@pytest.mark.parametrize("time", ["²", "9" * 5000])
def test_a_time_that_is_none_is_no_lease(time: str) -> None:
    assert parse_leases(f"{time} 02:00:00:00:00:01 10.0.0.100 * *\n") == ()


@pytest.mark.parametrize("address", ["10.0.0.", "10.0.0.256", "...", "10.0.0.07", "10.0.0.1/24"])
def test_an_address_that_is_none_is_no_lease(address: str) -> None:
    assert parse_leases(f"0 02:00:00:00:00:01 {address} * *\n") == ()
