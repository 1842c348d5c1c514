"""Bridges, taps and a cable of a real kernel, led by the real planner; guests are the test, which holds their taps.

A guest is launched, and takes over edits, as the model host says; every action on links is done by the agent's own
executor. So frames can be sent and read where a guest's QEMU would, byte for byte.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

from agent.core.actions import Action, EnslavePort, LaunchVm, ReleasePort
from agent.core.allocation import Allocations
from agent.core.desired import Desired
from agent.core.device_actions import ArmTap
from agent.core.memory import Memory
from agent.core.model.host import apply
from agent.core.observed import HostState, Observed
from agent.core.planner.draft import Plan
from agent.core.planning import plan
from agent.core.routing.filters import FILTERING, ChangeFilters, Filters, FilterState
from agent.core.routing.ipv6 import Ipv6State
from agent.host.netlink import VlanLinks
from agent.host.nft import change_tables
from agent.host.notify import Notifier
from agent.host.statedir import StateDirectory
from agent.host.tap import TapSettings
from agent.runtime.descriptors import Descriptors
from agent.runtime.execute_links import LinkAction, LinkExecutor
from agent.runtime.keeper import Keeper
from agent.unitfile.parse import parse_unit
from agent.unitfile.resolve import ResolveContext, UnitSource, resolve
from tests.frames import mac
from tests.netns import ip, ip_output, network_namespace

SOL_PACKET, PACKET_AUXDATA, TAG_SEEN = 263, 8, 0x10
VIRTIO_HEADER = 10
KIND = 0x88B5
"""An ethertype for experiments (IEEE 802)."""
SOON_S = 20.0
ARRIVES_S = 0.3
"""After this a frame is on its way no more: a veth hands it on within the system call that sent it, or soon after."""

Heard = tuple[int | None, str]
"""A frame as it came: its tag, and what was said."""


def frame(text: str, tag: int | None = None, source: str = "02:00:00:00:00:99") -> bytes:
    """A frame to everybody."""
    head = mac("ff:ff:ff:ff:ff:ff") + mac(source)
    return tagged(head + struct.pack("!H", KIND) + text.encode().ljust(60, b"."), tag)


def tagged(plain: bytes, tag: int | None) -> bytes:
    """A frame with a tag of IEEE 802.1Q."""
    return plain if tag is None else plain[:12] + struct.pack("!HH", 0x8100, tag) + plain[12:]


def parsed(data: bytes) -> Heard | None:
    """A frame of ours; None for others."""
    tag: int | None = None
    if data[12:14] == b"\x81\x00":
        tag = struct.unpack("!H", data[14:16])[0] & 0xFFF
        data = data[:12] + data[16:]
    if struct.unpack("!H", data[12:14])[0] != KIND:
        return None
    return tag, data[14:].rstrip(b".\0").decode()


class Tap:
    """The guest's end of a tap."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def send(self, data: bytes) -> None:
        os.write(self._fd, bytes(VIRTIO_HEADER) + data)

    def read(self) -> bytes:
        return os.read(self._fd, 65536)[VIRTIO_HEADER:]


class Far:
    """A link of this host, most often the far end of a bridge's cable; the kernel tells tags beside frames."""

    def __init__(self, link: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._socket.bind((link, 3))

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        self._socket.send(data)

    def read(self) -> bytes:
        data, more, _, (_, _, kind, *_) = self._socket.recvmsg(65536, 256)
        if kind == socket.PACKET_OUTGOING:
            return bytes(14)
        for level, name, value in more:
            status, tag = (
                struct.unpack_from("=I12xH", value) if (level, name) == (SOL_PACKET, PACKET_AUXDATA) else (0, 0)
            )
            if status & TAG_SEEN:
                return tagged(data, tag & 0xFFF)
        return data

    def close(self) -> None:
        self._socket.close()


class World:
    """What the units say, and what has become of it. `done` are the actions since the last edit."""

    def __init__(self, links: VlanLinks, executor: LinkExecutor, descriptors: Descriptors) -> None:
        self.links = links
        self.done: list[Action] = []
        self.observed = Observed(
            host=HostState(boot_id="boot"), filters=Filters(FilterState()), ipv6=Ipv6State(), max_disruption=99
        )
        self.plan = Plan()
        self.ends: dict[str, Tap | Far] = {}
        self._executor = executor
        self._descriptors = descriptors
        self._desired = Desired()
        self._allocations = Allocations()

    async def edit(self, text: str) -> None:
        """Have these units instead of the former ones, and do what follows."""
        unit = parse_unit("net.toml", text.encode())
        context = ResolveContext("machine", uuid.UUID(int=7), self._allocations, {}, {})
        resolution = resolve([UnitSource(unit)], context)
        assert [error for file in resolution.files for error in file.errors] == []
        self._desired, self._allocations = resolution.desired, resolution.allocations
        await self.settle()

    async def settle(self) -> None:
        """Plan and do until there is nothing to do."""
        self.done = []
        for _ in range(50):
            await self.links.full_look()
            self.plan = plan(self._desired, self._seen(), 0.0)
            if not self.plan.actions:
                return
            for action in self.plan.actions:
                await self._do(action)
                self.done.append(action)
        raise AssertionError(f"never settles: {self.plan.actions}")

    def _seen(self) -> Observed:
        self.links.catch_up()
        return replace(self.observed, links=self.links.snapshot)

    async def _do(self, action: Action) -> None:
        if isinstance(action, get_args(LinkAction)):
            await self._executor.change(action)
            enslaved = self.observed.enslaved
            if isinstance(action, EnslavePort):
                self.observed = replace(self.observed, enslaved=enslaved | {(action.port, action.bridge)})
            elif isinstance(action, ReleasePort):
                self.observed = replace(self.observed, enslaved=enslaved - {(action.port, action.bridge)})
        elif isinstance(action, ArmTap):
            await self._executor.arm(action, _no_settings)
            held = self._descriptors.find(action.vm, action.nic.id)
            assert held is not None
            self.ends[f"{action.vm}.{action.nic.id}"] = Tap(held.fds[0])
        else:
            if isinstance(action, ChangeFilters):
                change_tables(FILTERING, action.elements)
            self.observed = replace(apply(self._seen(), action, 0.0), links={})
            if isinstance(action, LaunchVm):
                self.observed = replace(self.observed, disks={})

    def conditions(self) -> set[tuple[str, str]]:
        """What is told now."""
        return {(one.resource, one.type) for one in plan(self._desired, self._seen(), 0.0).conditions}

    def reach(self, sender: str, tag: int | None = None, source: str = "02:00:00:00:00:99") -> dict[str, list[Heard]]:
        """Who gets a frame that one end sends, and with which tag; every other end is looked at.

        A frame is on its way within the sender's system call: when it returns, it is in the queues of all that get it.
        """
        self._heard(0)
        text = f"from {sender} {time.monotonic_ns()}"
        self.ends[sender].send(frame(text, tag, source))
        heard = self._heard(ARRIVES_S)
        return {
            name: found
            for name, frames in heard.items()
            if name != sender and (found := [one for one in frames if one[1] == text])
        }

    def tags(self, sender: str, tag: int | None = None) -> dict[str, int | None]:
        """As `reach`, with the tag that each got it with; once each."""
        reached = self.reach(sender, tag)
        assert all(len(frames) == 1 for frames in reached.values()), reached
        return {name: frames[0][0] for name, frames in reached.items()}

    def _heard(self, quiet_s: float) -> dict[str, list[Heard]]:
        """What comes to each end until nothing has come to any for so long."""
        found: dict[str, list[Heard]] = {name: [] for name in self.ends}
        names = {end.fileno(): name for name, end in self.ends.items()}
        while ready := select.select(list(names), [], [], quiet_s)[0]:
            for fd in ready:
                with contextlib.suppress(BlockingIOError):
                    heard = parsed(self.ends[names[fd]].read())
                    if heard is not None:
                        found[names[fd]].append(heard)
        return found


async def _no_settings(_: ArmTap) -> TapSettings:
    return TapSettings()


@contextlib.asynccontextmanager
async def made_world() -> AsyncIterator[World]:
    """A world in the namespace of the caller."""
    with tempfile.TemporaryDirectory() as folder:
        state = StateDirectory(Path(folder))
        state.open()
        keeper = Keeper(state, Memory("seed"))
        descriptors = Descriptors(Notifier())
        async with VlanLinks() as links:
            world = World(links, LinkExecutor(links, descriptors, keeper, Path(folder)), descriptors)
            try:
                yield world
            finally:
                for end in world.ends.values():
                    if isinstance(end, Far):
                        end.close()
                descriptors.close()
                state.close()


def vm(name: str, *nics: tuple[str, str]) -> str:
    """A guest with these NICs, each an id and its keys, on br0."""
    tables = "".join(f'[vm.{name}.nic.{id_}]\nbridge = "br0"\n{keys}\n' for id_, keys in nics)
    return f'[vm.{name}]\nmemory = "32M"\naccel = "tcg"\n{tables}'


def has_vlans() -> bool:
    """Whether this kernel has bridges that heed VLANs, and VLAN links; asked in a namespace of its own."""
    with network_namespace():
        try:
            ip("link add name br9 type bridge vlan_filtering 1", "link add link br9 name v9 type vlan id 9")
        except subprocess.CalledProcessError:
            return False
        return "vlan_default_pvid" in ip_output("-d link show br9")
