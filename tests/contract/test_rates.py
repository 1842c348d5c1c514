"""The limits of taps against the real kernel, in a network namespace of its own."""

from __future__ import annotations

import asyncio
import functools
import subprocess
from collections.abc import Callable, Iterator

import pytest

from agent.core.actions import ChangeRate
from agent.core.errors import TransientError
from agent.core.marks import GROUP, tap_mark
from agent.core.netlink import NLM_F_ACK
from agent.core.observed import IngressState, LinkState, QdiscState
from agent.core.rates import is_shape, shape_of
from agent.core.reasons import Reason
from agent.host.netlink import RatedLinks, traffic
from agent.host.netlink.rates import _needing
from agent.host.netlink.wire import NLM_F_CREATE, NLM_F_EXCL
from tests.contract.watching import watched
from tests.netns import ip, ip_output, network_namespace
from tests.throughput import Peer, received_share, share_within

TAP, IFB = "web-lan", "ifb-web-lan"
MBIT = 1_000_000
MATCH_ALL = "protocol all prio 7 u32 match u32 0 0 action mirred egress redirect dev lo"
SOON_S = 20.0


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    with network_namespace():
        ip(f"tuntap add dev {TAP} mode tap", f"link set {TAP} up alias {tap_mark('web', 'lan')}")
        yield


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, timeout=20)


def tc(command: str) -> str:
    return subprocess.run(["tc", *command.split()], capture_output=True, text=True, check=True, timeout=20).stdout


def action(links: RatedLinks, rate_in: int | None, rate_out: int | None, mtu: int = 1500) -> ChangeRate:
    tap = links.snapshot[TAP]
    return ChangeRate(
        "tap/web/lan", Reason.RATE, "web", "lan", TAP, tap.ifindex, tap.alias, mtu, rate_in, rate_out
    )  # fmt: skip


async def limit(links: RatedLinks, rate_in: int | None, rate_out: int | None, mtu: int = 1500) -> None:
    await links.change_rate(action(links, rate_in, rate_out, mtu))


def has_bucket(link: LinkState, rate_bps: int, mtu: int = 1500) -> bool:
    return link.root is not None and link.root.own and is_shape(link.root.shape, shape_of(rate_bps, mtu))


def assert_limited(links: RatedLinks, rate_in: int, rate_out: int) -> None:
    tap, ifb = links.snapshot[TAP], links.snapshot[IFB]
    assert has_bucket(tap, rate_in)
    assert has_bucket(ifb, rate_out)
    assert tap.ingress == IngressState("ingress", ifb.ifindex)
    assert (ifb.kind, ifb.up, ifb.alias) == ("ifb", True, "vmhost:ifb/web/lan")


def assert_bare(links: RatedLinks) -> None:
    tap = links.snapshot[TAP]
    assert (tap.root, tap.ingress) == (None, None)
    assert IFB not in links.snapshot
    assert "tbf" not in tc("qdisc show")
    assert "ingress" not in tc("qdisc show")
    assert IFB not in ip_output("link show")


async def test_limits_are_set_changed_in_place_and_taken_away() -> None:
    async with RatedLinks() as links:
        assert_bare(links)
        await limit(links, 10 * MBIT, 5 * MBIT)
        assert_limited(links, 10 * MBIT, 5 * MBIT)
        shown = tc(f"qdisc show dev {TAP}")
        assert "tbf 766d: root" in shown
        assert "rate 10Mbit burst 16Kb lat" in shown
        assert "rate 5Mbit" in tc(f"qdisc show dev {IFB}")
        ifindex = links.snapshot[IFB].ifindex
        await limit(links, 20 * MBIT, None)
        await limit(links, None, 7 * MBIT)
        assert_limited(links, 20 * MBIT, 7 * MBIT)
        assert links.snapshot[IFB].ifindex == ifindex
        await limit(links, 0, None)
        assert links.snapshot[TAP].root is None
        await limit(links, None, 0)
        assert_bare(links)
        await limit(links, 0, 0)
        assert_bare(links)


@pytest.mark.parametrize("rate_bps", [64_000, MBIT, 10 * MBIT, 1000 * MBIT, 34_359_738_000, 34_360_000_000, 10**11])
async def test_every_rate_is_read_back_as_it_was_set(rate_bps: int) -> None:
    async with RatedLinks() as links:
        for mtu in (1500, 65521):
            await limit(links, rate_bps, rate_bps, mtu)
            for name in (TAP, IFB):
                assert has_bucket(links.snapshot[name], rate_bps, mtu), links.snapshot[name]
    async with RatedLinks() as fresh:
        assert has_bucket(fresh.snapshot[TAP], rate_bps, 65521)


HALF_MADE = {
    "nothing": (),
    "ifb without its mark": (f"ip link add {IFB} group {GROUP} type ifb",),
    "ifb that is down": (f"ip link add {IFB} type ifb", f"ip link set {IFB} alias vmhost:ifb/web/lan"),
    "bucket of another rate": (
        f"ip link add {IFB} type ifb",
        f"ip link set {IFB} up alias vmhost:ifb/web/lan",
        f"tc qdisc add dev {IFB} root handle 766d: tbf rate 1mbit burst 9000 limit 9000",
        f"tc qdisc add dev {TAP} root handle 766d: tbf rate 1mbit burst 9000 limit 9000",
    ),
    "no filter": (
        f"ip link add {IFB} type ifb",
        f"ip link set {IFB} up alias vmhost:ifb/web/lan",
        f"tc qdisc add dev {TAP} ingress",
    ),
    "filter that leads elsewhere": (
        f"tc qdisc add dev {TAP} ingress",
        f"tc filter add dev {TAP} ingress {MATCH_ALL.replace('prio 7', 'prio 30317')}",
    ),
    "filter that leads nowhere any more": (
        "ip link add gone type ifb",
        "ip link set gone up",
        f"tc qdisc add dev {TAP} ingress",
        f"tc filter add dev {TAP} ingress {MATCH_ALL.replace('prio 7', 'prio 30317').replace('lo', 'gone')}",
        "ip link del gone",
    ),
}


@pytest.mark.parametrize("steps", HALF_MADE.values(), ids=HALF_MADE.keys())
async def test_what_was_interrupted_is_finished_or_taken_away(steps: tuple[str, ...]) -> None:
    for rates in ((10 * MBIT, 5 * MBIT), (0, 0)):
        for step in steps:
            run(step)
        async with RatedLinks() as links:
            await limit(links, *rates)
            if rates[0]:
                assert_limited(links, *rates)
                await limit(links, 0, 0)
            assert_bare(links)


async def test_what_happens_to_limits_rings_and_is_seen() -> None:
    async with watched(RatedLinks()) as (links, rung):
        await limit(links, 10 * MBIT, 5 * MBIT)
        await asyncio.sleep(0)
        other = f"tc qdisc change dev {TAP} root handle 766d: tbf rate 1mbit burst 9000 limit 9000"
        harms: dict[str, Callable[[], bool]] = {
            f"tc qdisc del dev {TAP} root": lambda: links.snapshot[TAP].root is None,
            other: lambda: not has_bucket(links.snapshot[TAP], 10 * MBIT),
            f"tc filter del dev {TAP} ingress prio 30317": lambda: (
                links.snapshot[TAP].ingress == IngressState("ingress")
            ),
            f"tc qdisc del dev {TAP} ingress": lambda: links.snapshot[TAP].ingress is None,
            f"tc qdisc del dev {IFB} root": lambda: links.snapshot[IFB].root is None,
            f"ip link del {IFB}": lambda: IFB not in links.snapshot,
        }
        for harm, seen in harms.items():
            rung.clear()
            run(harm)
            async with asyncio.timeout(SOON_S):
                while not seen():
                    await rung.wait()
                    rung.clear()
            await limit(links, 10 * MBIT, 5 * MBIT)
            assert_limited(links, 10 * MBIT, 5 * MBIT)


async def test_a_foreign_discipline_is_seen_and_never_replaced() -> None:
    tc(f"qdisc add dev {TAP} root tbf rate 3mbit burst 9000 limit 9000")
    async with RatedLinks() as links:
        assert links.snapshot[TAP].root == QdiscState("tbf")
        with pytest.raises(TransientError) as refused:
            await limit(links, 10 * MBIT, None)
        assert refused.value.reason == "Conflict"
        await limit(links, 0, None)
        assert links.snapshot[TAP].root == QdiscState("tbf")
    assert "rate 3Mbit" in tc(f"qdisc show dev {TAP}")


@pytest.mark.parametrize("kind", ["clsact", "ingress"])
async def test_foreign_filters_are_seen_and_left(kind: str) -> None:
    tc(f"qdisc add dev {TAP} {kind}")
    tc(f"filter add dev {TAP} ingress {MATCH_ALL}")
    async with RatedLinks() as links:
        expected = IngressState(kind, foreign=kind == "ingress")
        assert links.snapshot[TAP].ingress == expected or kind == "clsact"
        with pytest.raises(TransientError) as refused:
            await limit(links, None, 5 * MBIT)
        assert refused.value.reason == "Conflict"
        await limit(links, None, 0)
    assert "u32" in tc(f"filter show dev {TAP} ingress")
    assert IFB not in ip_output("link show")


async def test_a_foreign_filter_beside_ours_outlives_the_limit() -> None:
    async with RatedLinks() as links:
        await limit(links, None, 5 * MBIT)
        tc(f"filter add dev {TAP} ingress {MATCH_ALL}")
        links.catch_up()
        ifb = links.snapshot[IFB].ifindex
        assert links.snapshot[TAP].ingress == IngressState("ingress", ifb, foreign=True)
        await limit(links, None, 0)
        assert links.snapshot[TAP].ingress == IngressState("ingress", None, foreign=True)
    assert "pref 7 " in tc(f"filter show dev {TAP} ingress")
    assert "30317" not in tc(f"filter show dev {TAP} ingress")


async def test_a_foreign_link_of_the_ifbs_name_is_a_conflict() -> None:
    ip(f"link add {IFB} type ifb")
    async with RatedLinks() as links:
        with pytest.raises(TransientError) as refused:
            await limit(links, None, 5 * MBIT)
        assert refused.value.reason == "Conflict"
        await limit(links, None, 0)
    assert IFB in ip_output("link show")


async def test_a_tap_that_is_no_longer_ours_is_left_alone() -> None:
    async with RatedLinks() as links:
        seen = action(links, 10 * MBIT, 5 * MBIT)
        ip(f"link set {TAP} alias theirs")
        with pytest.raises(TransientError) as refused:
            await links.change_rate(seen)
        assert refused.value.reason == "LinkChanged"
    assert "tbf" not in tc("qdisc show")
    assert IFB not in ip_output("link show")


async def test_several_filters_of_our_priority_are_none_of_ours() -> None:
    """The first of them counts alone, so it must not stay before one that is right."""
    async with RatedLinks() as links:
        await limit(links, None, 5 * MBIT)
        tc(f"filter add dev {TAP} ingress {MATCH_ALL.replace('prio 7', 'prio 30317')}")
        links.catch_up()
        assert links.snapshot[TAP].ingress == IngressState("ingress", 0)
        await limit(links, None, 5 * MBIT)
        assert links.snapshot[TAP].ingress == IngressState("ingress", links.snapshot[IFB].ifindex)
    assert tc(f"filter show dev {TAP} ingress").count("Redirect to") == 1


async def test_another_tap_of_the_name_is_left_alone() -> None:
    async with RatedLinks() as links:
        stale = action(links, 10 * MBIT, 5 * MBIT)
        ip(f"link del {TAP}", f"tuntap add dev {TAP} mode tap")
        with pytest.raises(TransientError) as refused:
            await links.change_rate(stale)
        assert refused.value.reason == "LinkGone"
    assert "tbf" not in tc("qdisc show")


LACKING: dict[str, Callable[[int], tuple[int, traffic.TrafficRequest]]] = {
    "tbf": lambda tap: (traffic.RTM_NEWQDISC, traffic.bucket_setting(tap, shape_of(10 * MBIT, 1500))),
    "ingress": lambda tap: (traffic.RTM_NEWQDISC, traffic.ingress_setting(tap)),
    "u32": lambda tap: (traffic.RTM_NEWTFILTER, traffic.redirect_setting(tap, tap)),
    "mirred": lambda tap: (traffic.RTM_NEWTFILTER, traffic.redirect_setting(tap, tap)),
}


@pytest.mark.parametrize("name", LACKING)
async def test_what_a_kernel_lacks_is_told(name: str) -> None:
    """The very requests, for something that no kernel has."""
    if name in {"u32", "mirred"}:
        tc(f"qdisc add dev {TAP} ingress")
    async with RatedLinks() as links:
        kind, setting = LACKING[name](links.snapshot[TAP].ifindex)
        setting._body = setting._body.replace(f"{name}\0".encode(), f"{name[:-1]}?\0".encode())
        with pytest.raises(TransientError, match="no such thing, so the limit") as refused, _needing("such thing"):
            links._ask(kind, setting, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
        assert refused.value.reason == "KernelLacks"


async def test_traffic_keeps_to_its_limit_in_both_directions() -> None:
    """Between two namespaces, with TCP, and with more UDP than is let through."""
    ip(f"link del {TAP}")
    with Peer(TAP, tap_mark("web", "lan")) as peer:
        async with RatedLinks() as links:
            await limit(links, 10 * MBIT, 10 * MBIT)
            for direction in ("in", "out"):
                for kind in ("tcp", "udp"):
                    measure = functools.partial(received_share, peer, direction, kind, 10 * MBIT)
                    share = await asyncio.to_thread(share_within, measure)
                    print(f"{kind} {direction}: {share:.1%}")
