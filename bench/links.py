"""Links that are taken away from running guests."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure
from bench.host import bare_unit, fresh_agent, start, time_ip_batch, wait_settled
from bench.netlink import IFLA_MASTER, LinkEvents, being_deleted, delete_link, take_out_of_bridge
from tests.agent_process import AgentProcess
from tests.netns import ip
from tests.probe import answers_within

ROUNDS = 25
BRIDGE_ROUNDS = 12
GUESTS, NICS = 6, 8
GUEST = "10.77.0.10"
BOOT_S = 120.0
BOOT_FILES = Path(__file__).resolve().parent.parent / "build" / "guest"
BRIDGE = '[bridge.br-bench]\naddresses = ["10.77.0.1/24"]\n'


def tap_out_of_its_bridge(rounds: int = ROUNDS) -> Iterator[Figure]:
    """A tap is taken out of its bridge; beside it, `ip` puts a link into one."""
    back, bare = [], []
    with fresh_agent() as agent:
        agent.drop("net.toml", BRIDGE)
        agent.drop("web.toml", bare_unit(agent, "web", '[vm.web.nic.lan]\nbridge = "br-bench"'))
        start(agent)
        ip("link add br-hand type bridge", "link set br-hand up", "tuntap add by-hand mode tap", "link set by-hand up")
        bridge, tap = socket.if_nametoindex("br-bench"), socket.if_nametoindex("web-lan")
        for _ in range(rounds):
            with LinkEvents() as events:
                began = time.perf_counter()
                take_out_of_bridge("web-lan")
                # On its way out a port states itself with its old master as well.
                events.until(lambda index, new: index == tap and IFLA_MASTER not in new)
                put_back = events.until(lambda index, new: index == tap and new.get(IFLA_MASTER) == bridge)
            back.append((put_back - began) * 1000)
            wait_settled(agent)
            bare.append(time_ip_batch("link set by-hand master br-hand") * 1000)
            ip("link set by-hand nomaster")
    yield Figure("tap out of its bridge → back", "ms", back, 4.0, bare, "`ip -batch`, one line")


def bridge_deleted(rounds: int = BRIDGE_ROUNDS) -> Iterator[Figure]:
    """A bridge with 48 taps is deleted; beside it, `ip` makes one and puts 48 links into it."""
    back, bare = [], []
    number = GUESTS * NICS
    with fresh_agent() as agent:
        agent.drop("net.toml", BRIDGE)
        for guest in range(GUESTS):
            nics = "".join(f'[vm.g{guest}.nic.n{nic}]\nbridge = "br-bench"\n' for nic in range(NICS))
            agent.drop(f"g{guest}.toml", bare_unit(agent, f"g{guest}", nics))
        start(agent)
        taps = {socket.if_nametoindex(f"g{guest}-n{nic}") for guest in range(GUESTS) for nic in range(NICS)}
        by_hand = [f"tuntap add hand{n} mode tap" for n in range(number)]
        ip(*by_hand, *(f"link set hand{n} up" for n in range(number)))
        for _ in range(rounds):
            back.append(_until_all_back_s(taps) * 1000)
            wait_settled(agent)
            bare.append(
                time_ip_batch(
                    "link add br-hand type bridge",
                    "link set br-hand up",
                    *(f"link set hand{n} master br-hand" for n in range(number)),
                )
                * 1000
            )
            delete_link("br-hand")
    yield Figure(f"bridge deleted → {number} ports back", "ms", back, 100.0, bare, f"`ip -batch`, {number + 2} lines")


def _until_all_back_s(taps: set[int]) -> float:
    old = socket.if_nametoindex("br-bench")
    missing = set(taps)

    def all_back(index: int, new: dict[int, int]) -> bool:
        if new.get(IFLA_MASTER, old) != old:
            missing.discard(index)
        return not missing

    with LinkEvents() as events:
        began = time.perf_counter()
        with being_deleted("br-bench"):
            return events.until(all_back) - began


def tap_deleted(rounds: int = ROUNDS) -> Iterator[Figure]:
    """A tap is deleted beneath a guest that runs a real Linux, which is asked over TCP until it answers."""
    answered, healthy = [], []
    with fresh_agent() as agent:
        agent.drop("net.toml", BRIDGE)
        agent.drop("web.toml", _linux_unit(agent))
        start(agent)
        answers_within(GUEST, BOOT_S, "br-bench")
        wait_settled(agent)
        for _ in range(rounds):
            answered.append(_until_answered_s() * 1000)
            healthy.append(answers_within(GUEST, 20.0, "br-bench") * 1000)
            wait_settled(agent)
    yield Figure("tap deleted → guest's TCP answers", "ms", answered, 13.0, healthy, "a healthy guest's answer")


def _until_answered_s() -> float:
    """From before the deletion to the first answer to a connection begun after the kernel said that the tap is gone."""
    tap = socket.if_nametoindex("web-lan")
    with LinkEvents() as events:
        began = time.perf_counter()
        with being_deleted("web-lan"):
            gone = events.until_deleted(tap) - began
            return gone + answers_within(GUEST, 20.0, "br-bench")


def _linux_unit(agent: AgentProcess) -> str:
    for name in ("vmlinuz", "initramfs.img"):
        target = agent.folder / name
        target.write_bytes((BOOT_FILES / name).read_bytes())
        target.chmod(0o644)
    return (
        f'[vm.web]\nmemory = "128M"\naccel = "tcg"\nkernel = "{agent.folder}/vmlinuz"\n'
        f'initrd = "{agent.folder}/initramfs.img"\nstop-timeout = "1s"\n'
        f'append = "console=ttyS0 quiet init_on_alloc=0 panic=-1 vmhost.nic0={GUEST}/24,10.77.0.1"\n'
        '[vm.web.nic.lan]\nbridge = "br-bench"\n'
    )
