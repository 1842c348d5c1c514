"""A QEMU that is not itself any more: whatever it answers ends neither its guest's task nor, with that, the agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent.core.desired import DiskSpec, NicSpec
from agent.host.launches import Launches, LaunchRecord
from agent.host.netlink import Links
from agent.host.notify import Notifier
from agent.host.processes import kill, spawn
from agent.runtime.canary import Canary
from agent.runtime.descriptors import Descriptors
from agent.runtime.guest import Guest
from agent.runtime.guests import Guests
from agent.runtime.latency import ASK_WITHIN_S, count_latencies
from agent.runtime.look import NICS_EVERY, GuestLooks
from agent.runtime.starts import ChildStarts
from tests.measuring import Deaf
from tests.qemu import paused_vm, short_folder

GREETING: Mapping[str, Any] = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}
}
TRUE = {
    "query-status": {"status": "running"},
    "qom-list": [{"name": "rng"}],
    "query-cpus-fast": [{"thread-id": 1}],
    "query-blockstats": [],
    "query-block-jobs": [],
}


class Odd:
    """Speaks QMP, with odd answers at first."""

    def __init__(self, odd: Mapping[str, Any], slow: Mapping[str, float] | None = None) -> None:
        self.odd = dict(odd)
        self.slow = slow or {}
        self.times = 2
        self.asked: list[str] = []
        self.talks: set[asyncio.Task[None]] = set()

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.talks.add(asyncio.create_task(self._talk(reader, writer)))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps(GREETING).encode() + b"\n")
        while text := await reader.read(4096):  # one command at a time, and no newline after it
            command = json.loads(text)
            self.asked.append(command["execute"])
            answer: Any = TRUE.get(command["execute"], {})
            if command["execute"] in self.odd and self.times:
                self.times -= 1
                answer = self.odd[command["execute"]]
            await asyncio.sleep(self.slow.get(command["execute"], 0.0))
            named = {"id": command["id"]} if "id" in command else {}
            writer.write(json.dumps({"return": answer, **named}).encode() + b"\n")
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    "odd",
    [
        {"query-status": {}},
        {"query-status": {"state": "running"}},
        {"qom-list": [{}]},
        {"qom-list": 7},
        {"qom-list": ["balloon"]},
    ],
)
async def test_an_odd_answer_is_asked_for_again(odd: Mapping[str, Any]) -> None:
    peer = Odd(odd)
    async with served(peer) as guest:
        assert peer.times == 0
        assert guest.alive


async def test_nics_are_asked_as_often_while_somebody_else_looks_at_the_guest() -> None:
    asked: list[str] = []

    class Counting(Canary):
        def askable(self, nic: NicSpec) -> Iterator[tuple[int, str]]:
            asked.append(nic.id)
            yield from super().askable(nic)

    nic = NicSpec("lan", "br-none", "tap-none", "de:ad:be:ef:01:00", 1)
    async with Links() as links, served(Odd({}), nics=(nic,)) as guest:
        guests = Guests(Launches(guest.directory), Descriptors(Notifier()), ChildStarts(), lambda _: None, Deaf())
        looks = GuestLooks(guests, guest, Counting(links, dict))
        for _ in range(2 * NICS_EVERY):
            for _ in range(NICS_EVERY):  # `vmhost top` looks in between
                await looks.look()
            await looks.ask_nics()
        assert looks.measure is not None
        assert asked == ["lan"] * 2


async def test_a_start_waits_for_all_latencies_together_no_longer_than_for_one() -> None:
    disks = tuple(DiskSpec(f"d{at}", "", "raw", at) for at in range(8))
    stats = {f"{name}_total_time_ns": 0 for name in ("rd", "wr", "flush")}
    answer = [{"qdev": f"/machine/peripheral/disk-{one.id}/virtio-backend", "stats": stats} for one in disks]
    peer = Odd({"query-blockstats": answer}, slow={"block-latency-histogram-set": 0.8 * ASK_WITHIN_S})
    async with served(peer, disks=disks) as guest:
        guests = Guests(Launches(guest.directory), Descriptors(Notifier()), ChildStarts(), lambda _: None, Deaf())
        await count_latencies(guests, guest)
        assert 1 <= peer.asked.count("block-latency-histogram-set") <= 2  # each takes nearly all of the time


@asynccontextmanager
async def served(peer: Odd, **changes: object) -> AsyncIterator[Guest]:
    """A guest that runs, whose QEMU is the peer."""
    with short_folder() as folder:
        process = await spawn(["/bin/sleep", "600"], uid=0, log=2)
        server = await asyncio.start_unix_server(peer.serve, folder / "qmp.sock")
        record = LaunchRecord(paused_vm(uid=0, **changes), pid=process.pid)
        guest = Guest(record, process, folder, Descriptors(Notifier()), lambda _: None, Deaf(), ChildStarts())
        serving = asyncio.create_task(guest.serve())
        try:
            async with asyncio.timeout(60.0):
                while guest.run_state != "running" or guest.devices != frozenset({"rng"}):
                    assert not serving.done(), serving.exception()
                    await asyncio.sleep(0.02)
            yield guest
        finally:
            kill(process)
            await asyncio.gather(serving, return_exceptions=True)
            if guest.monitor is not None:
                await guest.monitor.close()
            server.close()
            await asyncio.gather(*peer.talks)
