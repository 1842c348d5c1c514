"""The firewall's adapters against the real nftables: what is written is read back as it was meant."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest

from agent.core.errors import TransientError
from agent.core.routing.filters import FILTERING
from agent.core.routing.firewall import NAT, FirewallState
from agent.core.routing.ruleset import Element, ElementChange, Ruleset, Table
from agent.host.nft import change_tables, look_at_tables
from agent.host.nft_events import NftEvents
from agent.host.nft_presence import NftPresence
from tests.netns import network_namespace

ELEMENTS = (
    Element("inside", '"br-lan"'),
    Element("same", '"br-lan" . "br-lan"'),
    Element("macs", '"br-ext" . 02:aa:00:00:00:0f'),
    Element("nat4", '"br-lan" . 192.168.0.0/24'),
    Element("nat4", '"br-lan" . 10.0.0.0/9'),
    Element("nat4", '"br.1+x" . 192.0.2.7'),
    Element("subnets6", '"br-lan" . fd00::/64'),
    Element("subnets6", '"br-lan" . 2001:db8::1'),
    Element("opened4", '"eth0"'),
    Element("opened6", '"wg0@x"'),
    Element("ports4", "tcp . 80", "192.168.0.100 . 8080"),
    Element("ports4", "udp . 80", "192.168.0.100 . 80"),
    Element("ports4_at", "192.0.2.1 . tcp . 80", "192.168.0.101 . 80"),
    Element("ports6", "tcp . 443", "fd00::100 . 443"),
    Element("ports6_at", "2001:db8::1 . tcp . 443", "fd00::101 . 443"),
    # Which nft prints with the last four bytes as in IPv4.
    Element("ports6_at", "::c633:6401 . tcp . 443", "::ffff:c633:6402 . 443"),
    Element("subnets6", '"br-lan" . ::a00:0/112'),
    Element("subnets6", '"br-lan" . ::ffff:a00:1'),
    Element("ranges4", "udp . 5000-5010", "192.168.0.100"),
    Element("ranges4", "udp . 6000-6003", "192.168.0.100"),
    Element("ranges4", "tcp . 6000-6003", "192.168.0.101"),
    Element("ranges4_at", "192.0.2.1 . udp . 5000-5010", "192.168.0.101"),
    Element("ranges6", "udp . 1024-65535", "fd00::100"),
    Element("ranges6_at", "2001:db8::1 . udp . 7-8", "fd00::100"),
    Element("ended4", "tcp . 80 . 80 . 192.168.0.100 . 8080"),
    Element("ended4", "udp . 5000 . 5010 . 192.168.0.100 . 5000"),
    Element("ended4", "udp . 5005 . 5020 . 192.168.0.100 . 5005"),
    Element("ended4", "udp . 5005 . 5005 . 192.168.0.100 . 5005"),
    Element("ended6", "udp . 7 . 8 . fd00::100 . 7"),
)


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    with network_namespace():
        yield


def whole(*elements: Element) -> ElementChange:
    return ElementChange(elements, whole=True)


def change_table(change: ElementChange) -> int:
    return change_tables(NAT, change)


def look_at_table() -> FirewallState:
    seen = look_at_tables(NAT)
    return FirewallState(seen.skeleton, seen.elements)


def nft(*words: str) -> str:
    return subprocess.run(["nft", *words], capture_output=True, text=True, check=True, timeout=20).stdout


def test_a_table_is_read_as_it_was_written() -> None:
    assert look_at_table() == FirewallState()
    change_table(whole(*ELEMENTS))
    seen = look_at_table()
    assert seen.is_intact
    assert seen.elements == frozenset(ELEMENTS)
    change_table(ElementChange(gone=True))
    assert look_at_table() == FirewallState()


def test_elements_change_alone_and_a_refused_transaction_changes_nothing() -> None:
    change_table(whole(*ELEMENTS))
    handles = nft("-a", "list", "chain", "inet", "vmhost", "published")
    old, new = Element("ports4", "tcp . 80", "192.168.0.100 . 8080"), Element("ports4", "tcp . 80", "192.168.0.9 . 8")
    change_table(ElementChange((new,), (old,)))
    change_table(ElementChange(remove=tuple(one for one in ELEMENTS if one.set.startswith("ended"))))
    expected = frozenset(one for one in ELEMENTS if one != old and not one.set.startswith("ended")) | {new}
    assert look_at_table().elements == expected
    wrong = ElementChange((Element("ports4", "tcp . 1", "10.0.0.1 . 1"),), (old, ELEMENTS[0], ELEMENTS[0]))
    with pytest.raises(TransientError, match="Could not process rule: No such file"):
        change_table(wrong)
    assert look_at_table().elements == expected
    assert nft("-a", "list", "chain", "inet", "vmhost", "published") == handles


@pytest.mark.parametrize(
    "words",
    [
        "insert rule inet vmhost forward drop",
        "add chain inet vmhost more",
        "add set inet vmhost more { type ipv4_addr; }",
        "flush chain inet vmhost postrouting",
        "add table inet vmhost { flags dormant; }",
        "add chain inet vmhost forward { type filter hook forward priority 0; policy drop; }",
        "add counter inet vmhost more",
    ],
)
def test_what_somebody_changes_is_seen_and_a_whole_table_undoes_it(words: str) -> None:
    change_table(whole(*ELEMENTS))
    nft(*words.split())
    assert look_at_table().exists
    assert not look_at_table().is_intact
    change_table(whole(*ELEMENTS))
    assert look_at_table().is_intact


def flush() -> int:
    """Flush everything, as a firewall's restart does; the pid of who did."""
    with subprocess.Popen(["nft", "flush", "ruleset"]) as theirs:
        return theirs.pid


async def heard(events: NftEvents, count: int) -> list[int]:
    pids: list[int] = []
    enough = asyncio.Event()

    def hear(pid: int) -> None:
        pids.append(pid)
        if len(pids) >= count:
            enough.set()

    watching = asyncio.create_task(events.watch(hear))
    await asyncio.wait_for(enough.wait(), 30)
    watching.cancel()
    return pids


async def test_a_change_is_heard_with_its_author_and_other_tables_are_not() -> None:
    with NftEvents(NAT) as events:
        nft("add", "table", "inet", "other")
        own = change_table(whole(*ELEMENTS))
        nft("add", "table", "ip", "vmhost")
        theirs = flush()
        assert await heard(events, 2) == [own, theirs]
        assert events.overruns == 0


async def test_lost_events_are_told_as_nobody_s() -> None:
    with NftEvents(NAT) as events:
        events.shrink(2048)
        many = tuple(Element("ports4", f"tcp . {port}", f"10.0.0.1 . {port}") for port in range(1, 2000))
        change_table(whole(*many))
        assert 0 in await heard(events, 1)
        assert events.overruns


def test_the_kernel_says_whether_there_are_tables() -> None:
    with closing(NftPresence(NAT)) as nat, closing(NftPresence(FILTERING)) as filtering:
        assert nat.are_absent()
        assert filtering.are_absent()
        change_tables(FILTERING, whole())
        assert nat.are_absent()
        assert not filtering.are_absent()
        subprocess.run(["nft", "delete", "table", *FILTERING.tables[0].reach.split()], check=True)
        assert not filtering.are_absent()  # there is the other one
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        subprocess.run(["nft", "add", "table", "ip", NAT.tables[0].name], check=True)  # of another family
        assert filtering.are_absent()
        assert nat.are_absent()
        subprocess.run(["nft", "add", "table", *NAT.tables[0].reach.split()], check=True)  # without anything in it
        assert not nat.are_absent()
        nat.close()
        assert not nat.are_absent()


def test_a_kernel_that_does_not_say_is_no_absence() -> None:
    strange = Ruleset((Table("inet", "x" * 40_000, (), ()),))  # NFT_NAME_MAXLEN is 256
    with closing(NftPresence(strange)) as presence:
        assert not presence.are_absent()
