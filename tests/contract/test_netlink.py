"""The links adapter against the real kernel, in a network namespace of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from agent.core import marks
from agent.core.actions import LinkChange
from agent.core.desired import BridgeSpec
from agent.core.errors import PermanentError, TransientError
from agent.core.observed import AddressState
from agent.host.netlink import Links
from agent.host.sysctls import change_sysctls
from tests.netns import ip, ip_output, network_namespace

SPEC = BridgeSpec("br0", "02:00:00:00:00:01", addresses=("192.0.2.1/24", "fd00::1/64"))
SOON_S = 20.0


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    with network_namespace():
        yield


class Bell:
    """A doorbell that can be waited for."""

    def __init__(self) -> None:
        self.rings: list[str] = []
        self._rung = asyncio.Event()

    def __call__(self, source: str) -> None:
        self.rings.append(source)
        self._rung.set()

    async def until(self, links: Links, name: str, *, there: bool = True) -> None:
        """Wait until the cache has, or no longer has, a link of this name."""
        async with asyncio.timeout(SOON_S):
            while (name in links.snapshot) != there:
                await self._rung.wait()
                self._rung.clear()


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[tuple[Links, Bell]]:
    async with Links() as links:
        bell = Bell()
        watching = asyncio.create_task(links.watch(bell))
        await asyncio.sleep(0)
        try:
            yield links, bell
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


def index(links: Links, name: str) -> int:
    return links.snapshot[name].ifindex


async def test_a_new_bridge_is_complete_marked_and_in_the_cache_at_once() -> None:
    async with Links() as links:
        await links.create_bridge(SPEC)
        bridge = links.snapshot["br0"]
        assert marks.is_own_bridge(bridge)
        assert (bridge.alias, bridge.group) == ("vmhost:bridge/br0", marks.GROUP)
        assert (bridge.up, bridge.mtu, bridge.mac) == (True, 1500, SPEC.mac)
        assert (bridge.stp, bridge.snooping, bridge.kind) == (False, False, "bridge")
        assert AddressState("192.0.2.1/24", own=True) in bridge.addresses
        assert AddressState("fd00::1/64", own=True) in bridge.addresses
    shown = ip_output("-d addr show br0")
    assert "forward_delay 0 " in shown
    assert "mcast_snooping 0" in shown
    assert "no_linklocal_learn 1" in shown
    assert "fd00::1/64 scope global nodad" in shown
    assert "brd 192.0.2.255" in shown


async def test_where_ipv6_is_switched_off_ipv4_addresses_are_there_and_the_reason_is_told() -> None:
    change_sysctls([("ipv6/conf/default/disable_ipv6", "1")])
    spec = replace(SPEC, addresses=("fd00::1/64", "192.0.2.1/24"))
    async with Links() as links:
        with pytest.raises(PermanentError, match="IPv6 is switched off on br0; sysctl -w net") as refused:
            await links.create_bridge(spec)
        assert refused.value.reason == "Ipv6Off"
        bridge = index(links, "br0")
        with pytest.raises(PermanentError, match="IPv6 is switched off on br0; sysctl -w net"):
            await links.change_addresses(bridge, spec.addresses, [])
        assert [one.address for one in links.snapshot["br0"].addresses] == ["192.0.2.1/24"]


async def test_a_bridge_keeps_its_mtu_whatever_its_ports_have() -> None:
    ip("link add v0 mtu 9000 type veth peer name v1")
    async with Links() as links:
        await links.create_bridge(SPEC)
        await links.enslave(index(links, "v0"), index(links, "br0"), None)
        assert links.snapshot["br0"].mtu == 1500
        assert links.snapshot["v0"].mtu == 9000


async def test_a_taken_name_is_a_conflict() -> None:
    ip("link add br0 type bridge")
    async with Links() as links:
        with pytest.raises(TransientError) as refused:
            await links.create_bridge(SPEC)
        assert refused.value.reason == "Conflict"
        assert links.errors["EEXIST"] == 1
        assert links.snapshot["br0"].alias == ""


async def test_every_field_of_a_link_can_be_changed_and_is_read_back() -> None:
    ip("link add br1 type bridge", "link add v0 type veth peer name v1")
    async with Links() as links:
        await links.create_bridge(SPEC)
        wanted = LinkChange(
            up=True, mtu=1400, mac="02:00:00:00:00:09", master=index(links, "br0"), alias="mark", name="port"
        )
        await links.change("v0", index(links, "v0"), "", wanted)
        port = links.snapshot["port"]
        assert (port.up, port.mtu, port.mac, port.master, port.alias) == (
            True, 1400, "02:00:00:00:00:09", index(links, "br0"), "mark",
        )  # fmt: skip
        assert "v0" not in links.snapshot
        await links.change("port", port.ifindex, "mark", LinkChange(up=False, master=0, alias=""))
        port = links.snapshot["port"]
        assert (port.up, port.master, port.alias) == (False, None, "")
        assert links.snapshot["br1"].group_learning
        wanted = LinkChange(stp=True, snooping=False, group_learning=False)
        await links.change("br1", index(links, "br1"), "", wanted)
        bridge = links.snapshot["br1"]
        assert (bridge.stp, bridge.snooping, bridge.group_learning) == (True, False, False)
        await links.change("br1", bridge.ifindex, "", LinkChange(group_learning=True))
        assert links.snapshot["br1"].group_learning


async def test_the_mark_of_a_link_that_is_down_is_read_back() -> None:
    """The kernel announces no alias of a link that is down, and a tap is marked before it is set up."""
    ip("link add v0 type veth peer name v1")
    async with Links() as links:
        await links.change("v0", index(links, "v0"), "", LinkChange(alias="mark"))
        assert (links.snapshot["v0"].alias, links.snapshot["v0"].up) == ("mark", False)


async def test_a_link_that_is_no_longer_the_one_is_left_alone() -> None:
    ip("link add v0 type veth peer name v1", "link set v0 alias theirs")
    async with Links() as links:
        ifindex = index(links, "v0")
        for name, alias in (("v0", "ours"), ("other", "theirs")):
            for doing in (links.change(name, ifindex, alias, LinkChange(up=True)), links.delete(name, ifindex, alias)):
                with pytest.raises(TransientError) as refused:
                    await doing
                assert refused.value.reason == "LinkChanged"
        assert links.snapshot["v0"].up is False
        await links.delete("v0", ifindex, "theirs")
        assert "v0" not in links.snapshot
        await links.delete("v0", ifindex, "theirs")  # gone already
        with pytest.raises(TransientError) as gone:
            await links.change("v0", ifindex, "theirs", LinkChange(up=True))
        assert gone.value.reason == "LinkGone"


async def test_a_master_that_is_gone_is_worth_another_try() -> None:
    ip("link add v0 type veth peer name v1")
    async with Links() as links:
        for doing in (
            links.change("v0", index(links, "v0"), "", LinkChange(master=999)),
            links.enslave(index(links, "v0"), 999, None),
        ):
            with pytest.raises(TransientError) as refused:
                await doing
            assert refused.value.reason == "LinkGone"


async def test_what_the_kernel_calls_invalid_is_permanent_in_its_own_words() -> None:
    ip("link add v0 type veth peer name v1")
    async with Links() as links:
        with pytest.raises(PermanentError, match="mtu greater than device maximum"):
            await links.change("v0", index(links, "v0"), "", LinkChange(mtu=1_000_000))


@pytest.mark.parametrize(
    "given",
    [
        "addr add 192.0.2.9/24 dev v0",
        "addr add fd00::9/64 dev v0 nodad",
        "route add 198.51.100.0/24 dev v0",
        "route add default dev v0",
        "route add 2001:db8::/32 dev v0",
        "route add ::/0 dev v0",
        "route add 198.51.100.0/24 nexthop dev v0 nexthop dev v1",
    ],
)
async def test_a_port_that_something_is_reached_through_is_not_enslaved(given: str) -> None:
    ip("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up", given)
    async with Links() as links:
        await links.create_bridge(SPEC)
        with pytest.raises(PermanentError) as refused:
            await links.enslave(index(links, "v0"), index(links, "br0"), None)
        assert refused.value.reason == "PortAddressed"
        assert links.snapshot["v0"].master is None


async def test_a_port_with_link_local_addresses_is_enslaved_and_released() -> None:
    ip("link add v0 type veth peer name v1", "link set v1 up", "link set v0 up")
    ip(
        "addr add fe80::9/64 dev v0 nodad",
        "addr add 169.254.1.1/16 dev v0 scope link",
        "route add 203.0.113.0/24 dev v1",
    )
    async with Links() as links:
        await links.create_bridge(SPEC)
        port, bridge = index(links, "v0"), index(links, "br0")
        await links.enslave(port, bridge, 1400)
        assert (links.snapshot["v0"].master, links.snapshot["v0"].mtu) == (bridge, 1400)
        await links.release(port, bridge + 100)
        assert links.snapshot["v0"].master == bridge
        await links.release(port, bridge)
        assert [links.snapshot["v0"].master, links.snapshot["v0"].up] == [None, True]
        await links.release(999, bridge)


async def test_a_port_of_another_bridge_is_not_taken_away() -> None:
    ip("link add br1 type bridge", "link add v0 type veth peer name v1", "link set v0 master br1")
    async with Links() as links:
        await links.create_bridge(SPEC)
        with pytest.raises(TransientError) as refused:
            await links.enslave(index(links, "v0"), index(links, "br0"), None)
        assert refused.value.reason == "Conflict"
        assert links.snapshot["v0"].master == index(links, "br1")


async def test_addresses_are_added_before_others_go_and_ours_are_known() -> None:
    async with Links() as links:
        await links.create_bridge(SPEC)
        ip("addr add 192.0.2.77/24 dev br0")
        ifindex = index(links, "br0")
        # 192.0.2.1 is the first of its subnet: the kernel takes the others with it.
        await links.change_addresses(ifindex, ["192.0.2.2/24", "FD00:0::2/64"], ["192.0.2.1/24", "fd00::1/64"])
        wanted = {
            AddressState("192.0.2.2/24", own=True),
            AddressState("192.0.2.77/24"),
            AddressState("fd00::2/64", own=True),
        }
        assert {a for a in links.snapshot["br0"].addresses if not a.link_local} == wanted
        await links.change_addresses(ifindex, ["192.0.2.2/24"], ["192.0.2.1/24"])  # both done already
        with pytest.raises(TransientError):
            await links.change_addresses(999, ["192.0.2.2/24"], [])
    shown = ip_output("addr show br0")
    assert "192.0.2.77/24" in shown
    assert "192.0.2.1/24" not in shown


async def test_foreign_changes_ring_and_reach_the_cache() -> None:
    async with watched() as (links, bell):
        before = links.snapshot
        assert links.snapshot is before
        ip("link add v0 type veth peer name v1")
        await bell.until(links, "v0")
        assert "v0" not in before
        ip("link set v0 name v2")
        await bell.until(links, "v2")
        ip("link del v2")
        await bell.until(links, "v1", there=False)
        assert set(bell.rings) == {"netlink"}
        assert links.events["newlink"] > 0
        assert links.events["dellink"] > 0


async def test_a_deleted_bridge_frees_its_ports_which_stay_in_the_cache() -> None:
    ip("link add br0 type bridge", "link add v0 type veth peer name v1", "link set v0 master br0")
    async with watched() as (links, bell):
        assert links.snapshot["v0"].master is not None
        ip("link del br0")
        await bell.until(links, "br0", there=False)
        assert links.snapshot["v0"].master is None


async def test_lost_events_are_made_up_for() -> None:
    async with watched() as (links, bell):
        links._events.shrink(2048)
        ip(*[f"link add v{n} type veth peer name w{n}" for n in range(40)])
        await bell.until(links, "w39")
        await bell.until(links, "v0")
        assert len(links.snapshot) == 81
        assert links.overflows >= 1
        assert links.errors["ENOBUFS"] == links.overflows
        ip("link del v0")  # the new socket hears again
        await bell.until(links, "w0", there=False)


async def test_two_thousand_events_fit() -> None:
    async with watched() as (links, bell):
        ip(
            "link add v0 type veth peer name v1",
            *[f"link set v0 mtu {1400 + n % 50}" for n in range(2000)],
            "link add e0 type bridge",
        )
        await bell.until(links, "e0")
        assert links.overflows == 0
        assert links.events["newlink"] >= 2000


async def test_a_full_look_corrects_the_cache_and_keeps_what_events_said_meanwhile() -> None:
    ip(*[f"link add v{n} type veth peer name w{n}" for n in range(40)])
    async with Links() as links:
        links._cache._forget(index(links, "v5"))
        links._cache.put_addresses(index(links, "lo"), [AddressState("192.0.2.200/32")])
        looking = asyncio.create_task(links.full_look())
        await asyncio.sleep(0)  # the first part has been read: these changes are not in it
        ip("link del v0", "link add late type bridge", "addr add 192.0.2.5/32 dev v1")
        await looking
        assert "v5" in links.snapshot
        assert "v0" not in links.snapshot
        assert "late" in links.snapshot
        assert AddressState("192.0.2.5/32") in links.snapshot["v1"].addresses
        assert "192.0.2.200/32" not in {a.address for a in links.snapshot["lo"].addresses}
        actual = {line.split(":")[1].split("@")[0].strip() for line in ip_output("-o link").splitlines()}
        assert set(links.snapshot) == actual


async def test_a_link_that_was_made_during_a_look_stays_though_the_look_missed_it() -> None:
    async with Links() as links:
        links._cache.begin_look()
        ip("link add late type bridge")
        links.catch_up()
        links._cache.end_look([], [])
        assert set(links.snapshot) == {"late"}


async def test_a_link_that_left_its_bridge_is_not_taken_for_deleted() -> None:
    ip("link add br0 type bridge", "link add v0 type veth peer name v1", "link set v0 master br0 up")
    async with Links() as links:
        ip("addr add 192.0.2.9/24 dev v0")
        links.catch_up()
        ip("link set v0 nomaster")
        links.catch_up()
        assert links.events["dellink"] == 1  # of family AF_BRIDGE
        assert links.snapshot["v0"].master is None
        assert AddressState("192.0.2.9/24") in links.snapshot["v0"].addresses


async def test_statistics_count_what_passes() -> None:
    async with Links() as links:
        ip("addr add 192.0.2.1/32 dev lo")
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("192.0.2.1", 9))
        transport.sendto(bytes(972))
        transport.close()
        found = (await links.statistics())["lo"]
        assert found.tx_packets >= 1
        assert found.tx_bytes == found.rx_bytes >= 1000


async def test_without_the_capability_the_error_names_it() -> None:
    ip("link add v0 type veth peer name v1")
    async with Links() as links:
        with without_net_admin(), pytest.raises(PermanentError, match="CAP_NET_ADMIN") as refused:
            await links.change("v0", index(links, "v0"), "", LinkChange(up=True))
        assert refused.value.reason == "NotPermitted"


async def test_many_ports_are_put_back_one_after_the_other() -> None:
    ports = [f"v{n}" for n in range(48)]
    ip("link add br0 type bridge", *[f"link add {p} type veth peer name {p}p" for p in ports])
    async with Links() as links:
        bridge = index(links, "br0")
        for port in ports:
            await links.change(port, index(links, port), "", LinkChange(master=bridge, up=True))
        assert all(links.snapshot[port].master == bridge for port in ports)


@contextlib.contextmanager
def without_net_admin() -> Iterator[None]:
    """Take CAP_NET_ADMIN out of this thread's effective set for a while (capset(2), version 3)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    full = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, full) == 0
    less = (ctypes.c_uint32 * 6)(*full)
    less[0] &= ~(1 << 12)
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, full) == 0
