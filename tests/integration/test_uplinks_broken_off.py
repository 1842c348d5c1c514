"""A move, and a put back, that is broken off before any of its requests, on the real kernel: all is as it was."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.core.uplinks.carried import LinkPicture, carried_texts
from agent.core.uplinks.moves import Move, Progress, Step
from agent.core.uplinks.order import Request, begin, carry
from agent.host.netlink import moving
from agent.host.netlink.moving import move_to_bridge, picture_of, put_all_back
from agent.host.netlink.raw import send_all
from agent.host.statedir.moves import Journals
from agent.runtime.clock import boot_id, now_s
from tests.agent_process import AgentProcess
from tests.integration.uplink_world import CARRIED, LEG, quiet, shown, state, tables
from tests.integration.waiting import wait_for
from tests.internet import Box
from tests.netns import ip, ip_output

SIOCGIFFLAGS = 0x8913


def broken_off_after(count: int) -> Callable[[Sequence[Request]], None]:
    """Sends so many requests, and drops all others: whoever sent was killed."""
    left = count

    def send(requests: Sequence[Request]) -> None:
        nonlocal left
        now, left = min(left, len(requests)), left - min(left, len(requests))
        if now:
            send_all(requests[:now])

    return send


def pictures() -> tuple[LinkPicture, LinkPicture]:
    port, bridge = picture_of("up0"), picture_of("br0")
    assert port is not None
    assert bridge is not None
    return port, bridge


@pytest.fixture
def rich(agent: AgentProcess) -> Iterator[tuple[Move, list[Any]]]:
    """A card that carries a bit of everything, its bridge, and what `ip` says of all but the bridge."""
    assert agent.process is None
    with Box("up0", addresses=("192.0.2.1/24", "2001:db8::1/64")):
        ip("link add other type veth peer name far", "link set other up", "link set far up")
        ip("addr add 172.16.0.1/24 dev other", *CARRIED, LEG, "link add br0 type bridge", "link set br0 up")
        quiet()
        yield Move("br0", "digest", boot_id(), now_s(), 10.0, 0.0, *pictures()), tables("br0")


def same(before: list[Any]) -> None:
    """Assert that all is as it was; the kernel says some of it a moment later."""
    wait_for(lambda: tables("br0") == before, says=lambda: f"{tables('br0')} {before}")


def test_a_move_that_is_broken_off_before_any_request_is_put_back_whole(rich: tuple[Move, list[Any]]) -> None:
    move, before = rich
    count = len(begin(move.port, move.bridge_was, None)) + len(carry(move.port, move.port, move.bridge_was))
    assert count > 30
    for done in range(count + 1):
        move_to_bridge(move, None, send=broken_off_after(done))
        assert put_all_back(move) == ""
        same(before)
        assert [a for a in pictures()[1].addresses if b"\xc0\x00\x02" in a] == []


def test_a_card_that_was_renamed_meanwhile_is_put_back_and_no_other_of_its_name(rich: tuple[Move, list[Any]]) -> None:
    move, _ = rich
    move_to_bridge(move, None)
    ip("link set up0 down", "link set up0 name lan0", "link set lan0 up")
    ip("link add up0 type veth peer name elsewhere", "link set up0 up", "link set elsewhere up")
    assert put_all_back(move) == ""
    assert "inet" not in ip_output("-4 addr show up0")
    assert "192.0.2.5/24" not in shown("br0")
    card = picture_of("lan0")
    assert card is not None
    assert (card.master, {*carried_texts(card)}) == (0, {*carried_texts(move.port)})


def test_a_way_that_the_unit_added_meanwhile_leads_nobody_astray(rich: tuple[Move, list[Any]]) -> None:
    move, before = rich
    ip("addr add 172.20.0.1/24 dev br0")  # with its last address a bridge would lose its routes by itself
    move = replace(move, bridge_was=pictures()[1])
    move_to_bridge(move, None)
    ip("route add default via 192.0.2.1 dev br0 proto 119", "route add 10.77.0.0/16 via 172.20.0.9 proto static")
    ip("route add default via 2001:db8::1 dev br0 proto 119 metric 9")
    assert "br0" in ip_output("route get 203.0.113.200")
    assert put_all_back(move) == ""
    assert "dev up0" in ip_output("route get 203.0.113.200")
    assert "dev up0" in ip_output("-6 route get 2001:db8:ffff::1")
    assert "172.20.0.9" in ip_output("route")
    same(before)


def test_a_put_back_that_is_broken_off_is_begun_again(rich: tuple[Move, list[Any]]) -> None:
    move, before = rich
    whole: list[Request] = []
    move_to_bridge(move, None)

    def noting(requests: Sequence[Request]) -> None:
        whole.extend(requests)
        send_all(requests)

    assert put_all_back(move, noting) == ""
    for done in range(len(whole) + 1):
        move_to_bridge(move, None)
        put_all_back(move, broken_off_after(done))
        assert put_all_back(move) == ""
        same(before)


def test_what_is_announced_finds_a_bridge_that_sends(
    rich: tuple[Move, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "RUNNING_LOOKS", 30_000)  # the kernel's worker may have other namespaces to do
    move, _ = rich
    ip("link add last type veth peer name end", "link set last master br0", "link set end up", "link set last up")
    ip("link del last")  # without its last port it has no carrier, and some time later no queue
    wait_for(lambda: "state DOWN" in ip_output("link show br0"))
    sends = []

    def noting(requests: Sequence[Request]) -> None:
        sends.append(is_running("br0"))
        send_all(requests)

    with before_all_workers():
        move_to_bridge(move, None, send=noting)
    assert sends == [False, True]


@contextlib.contextmanager
def before_all_workers() -> Iterator[None]:
    """Inside, this thread is on one CPU and gives it to no worker of the kernel unless it waits, as on a busy host."""
    cpus = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cpus)})
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, cpus)


def is_running(link: str) -> bool:
    """IFF_RUNNING, which a link has once it passes on what it is given; asked without a process (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        return bool(
            struct.unpack_from("=H", fcntl.ioctl(one, SIOCGIFFLAGS, struct.pack("16s16x", link.encode())), 16)[0] & 0x40
        )


def test_all_of_it_is_on_the_bridge(rich: tuple[Move, list[Any]]) -> None:
    move, before = rich
    move_to_bridge(move, None)
    there = tables("up0")
    words = json.dumps(before).replace('"up0', '"br0')
    wanted = json.loads(words)
    for table in range(1, 5):
        moved = [row for row in wanted[table] if row.get("protocol") != "kernel" and row not in there[table]]
        assert moved == []
    (bridge,) = (one["addr_info"] for one in there[0] if one["ifname"] == "br0")
    (port,) = (one["addr_info"] for one in wanted[0] if one["ifname"] == "br0")
    assert [a for a in bridge if not a["local"].startswith("fe80")] == [
        a for a in port if not a["local"].startswith("fe80")
    ]


def test_the_next_agent_puts_back_what_an_agent_left_between_two_requests(
    rich: tuple[Move, list[Any]], agent: AgentProcess
) -> None:
    move, before = rich
    journal = Journals(agent.folder / "state").of("br0")
    for done in (0, 1, 3, 9, 15, 25):
        journal.write(move, Progress(Step.WRITTEN, "2026-01-01T00:00:00.000+00:00"))
        move_to_bridge(move, None, send=broken_off_after(done))
        agent.start()
        assert state(agent) == "put-back"
        agent.kill()
        same(before)


def test_the_switch_and_the_next_agent_do_it_once(rich: tuple[Move, list[Any]], agent: AgentProcess) -> None:
    move, before = rich
    journal = Journals(agent.folder / "state").of("br0")
    journal.write(move, Progress(Step.MOVED, "2026-01-01T00:00:00.000+00:00"))
    move_to_bridge(move, None)
    command = [sys.executable, "-m", "agent.put_back", str(journal.path)]
    with journal.lock():  # each waits for whoever is at it
        switches = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        assert all(one.poll() is None for one in switches)
    said = [one.communicate(timeout=60)[1] for one in switches]
    assert [one.returncode for one in switches] == [0, 0]
    assert sorted(bool(words) for words in said) == [False, True]
    same(before)
    found = journal.read()
    assert found is not None
    assert found[1].step is Step.PUT_BACK


FULL = """set -e
mount -t tmpfs -o size=64k,mode=700 tmpfs "$1"
cp "$2" "$1/br0.move"
: >"$1/br0.lock"
cat /dev/zero >"$1/filler" 2>/dev/null || :
if cp "$2" "$1/another" 2>/dev/null; then exit 9; fi
[ "$3" = full ] || mount -o remount,ro "$1"
"$4" -m agent.put_back "$1/br0.move" || [ "$3" != full ]
cat "$1/br0.move"
"""


@pytest.mark.parametrize("disk", ["full", "read-only"])
def test_a_disk_that_takes_nothing_keeps_nothing_from_being_put_back(
    rich: tuple[Move, list[Any]], tmp_path: Path, disk: str
) -> None:
    move, before = rich
    journal = Journals(tmp_path).of("br0")
    journal.write(move, Progress(Step.MOVED, "2026-01-01T00:00:00.000+00:00"))
    move_to_bridge(move, None)
    place = tmp_path / "disk"
    place.mkdir()
    words = ["unshare", "--mount", "sh", "-c", FULL, "sh", str(place), str(journal.path), disk, sys.executable]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    same(before)
    assert ('"step": "put-back"' in done.stdout) is (disk == "full")
    assert disk == "full" or "Read-only file system" in done.stderr
