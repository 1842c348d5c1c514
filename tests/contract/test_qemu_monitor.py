"""The monitor of a real QEMU: answers, refusals, events, and each way in which a connection ends."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.core.errors import OutcomeUnknownError, PermanentError, TransientError
from agent.host.launches import Launches
from agent.host.processes import find_qemu, kill
from agent.host.qmp import CommandRefusedError, Monitor
from tests.qemu import UID, launched, paused_vm, short_folder


@pytest.fixture
def launches() -> Iterator[Launches]:
    with short_folder() as folder:
        found = Launches(folder)
        found.open()
        yield found


def ignore(_name: str, _data: Mapping[str, Any]) -> None:
    pass


async def test_refusals_carry_the_words_of_qemu(launches: Launches) -> None:
    async with launched(launches, paused_vm()) as guest:
        monitor = await guest.monitor()
        with pytest.raises(CommandRefusedError, match="device_del: Device 'x' not found") as refused:
            await monitor.execute("device_del", {"id": "x"})
        assert refused.value.error_class == "DeviceNotFound"
        with pytest.raises(CommandRefusedError) as unknown:
            await monitor.execute("make-coffee")
        assert unknown.value.error_class == "CommandNotFound"
        assert isinstance(unknown.value, PermanentError)


async def test_events_arrive_in_order_and_are_not_kept(launches: Launches) -> None:
    heard: list[str] = []
    end = asyncio.Event()

    def hear(name: str, data: Mapping[str, Any]) -> None:
        heard.append(name)
        if name == "SHUTDOWN":
            assert data["reason"] == "host-qmp-quit"
            end.set()

    async with launched(launches, paused_vm()) as guest:
        monitor = await guest.monitor(hear)
        for _ in range(3):
            await monitor.execute("cont")
            await monitor.execute("stop")
        with_history = monitor._client.events.history
        await monitor.execute("quit")
        await asyncio.wait_for(end.wait(), 30)
    assert [name for name in heard if name in {"RESUME", "STOP"}][:6] == ["RESUME", "STOP"] * 3
    assert with_history == ()


async def test_a_listener_that_fails_takes_nothing_down(launches: Launches) -> None:
    failures: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context["exception"]))

    def fail(_name: str, _data: Mapping[str, Any]) -> None:
        raise RuntimeError("bug")

    async with launched(launches, paused_vm()) as guest:
        monitor = await guest.monitor(fail)
        await monitor.execute("cont")
        await monitor.execute("stop")
        assert (await monitor.execute("query-status"))["status"] == "paused"
        await monitor.close()
    assert [str(failure) for failure in failures][:2] == ["bug", "bug"]


async def test_a_second_client_is_refused_in_time_and_the_next_one_served(launches: Launches) -> None:
    async with launched(launches, paused_vm()) as guest:
        monitor = await guest.monitor()
        with pytest.raises(TransientError) as busy:
            await Monitor.connect(guest.directory / "qmp.sock", 0.1, ignore)
        assert busy.value.reason == "MonitorBusy"
        operator = await Monitor.connect(guest.directory / "operator.sock", 30, ignore)
        await operator.close()
        await monitor.close()
        with pytest.raises(TransientError):
            await monitor.execute("query-status")
        again = await Monitor.connect(guest.directory / "qmp.sock", 30, ignore)
        await again.execute("query-status")
        await again.close()


async def test_a_stopped_qemu_is_silent(launches: Launches) -> None:
    async with launched(launches, paused_vm()) as guest:
        monitor = await guest.monitor()
        guest.process.signal(signal.SIGSTOP)
        with pytest.raises(OutcomeUnknownError) as silent:
            await monitor.execute("query-status", timeout_s=0.05)
        assert silent.value.reason == "QemuSilent"
        guest.process.signal(signal.SIGCONT)
        assert (await monitor.execute("query-status"))["status"] == "prelaunch"
        guest.process.signal(signal.SIGSTOP)
        with pytest.raises(OutcomeUnknownError):
            await monitor.execute("query-status", {"more than it takes": "x" * 4_000_000}, timeout_s=0.05)
        await asyncio.wait_for(monitor.close(), 30)


async def test_a_killed_qemu_breaks_the_connection(launches: Launches) -> None:
    async with launched(launches, paused_vm()) as guest:
        monitor = await guest.monitor()
        guest.process.signal(signal.SIGSTOP)
        asked = asyncio.create_task(monitor.execute("query-status", timeout_s=None))
        waiting = asyncio.create_task(monitor.closed())
        await asyncio.sleep(0)
        kill(guest.process)
        with pytest.raises(OutcomeUnknownError) as lost:
            await asyncio.wait_for(asked, 30)
        assert lost.value.reason == "ConnectionLost"
        await asyncio.wait_for(waiting, 30)
        status = await guest.process.wait_exit()
        assert status is not None
        assert (status.signal, status.reason) == (signal.SIGKILL, "killed")


async def test_nobody_listens(launches: Launches) -> None:
    with pytest.raises(TransientError):
        await Monitor.connect("/nowhere/qmp.sock", 1, ignore)
    with pytest.raises(PermanentError, match="at most 107") as long:
        await Monitor.connect("/" + "x" * 107, 1, ignore)
    assert long.value.reason == "PathTooLong"
    async with launched(launches, paused_vm()) as guest:
        await (await guest.monitor()).close()
        with pytest.raises(PermanentError, match=f"uid {UID} listens there"):
            await Monitor.connect(guest.directory / "qmp.sock", 30, ignore, peer_uid=UID + 1)


async def test_nothing_is_left_open(launches: Launches) -> None:
    async with launched(launches, paused_vm()) as guest:
        await (await guest.monitor()).close()
        gc.collect()
        before = os.listdir("/proc/self/fd")
        for _ in range(5):
            await (await guest.monitor()).close()
        assert len(os.listdir("/proc/self/fd")) <= len(before)
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_a_connection_takes_milliseconds(launches: Launches) -> None:
    async with launched(launches, paused_vm()) as guest:
        await (await guest.monitor()).close()
        times = []
        for _ in range(9):
            begin = time.perf_counter()
            monitor = await Monitor.connect(guest.directory / "qmp.sock", 30, ignore)
            times.append(time.perf_counter() - begin)
            await monitor.close()
        assert sorted(times)[4] < 1


async def test_finding_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = await find_qemu()
    assert found.path.endswith("qemu-system-x86_64")
    assert int(found.version.split(".")[0]) >= 7
    old = tmp_path / "old-qemu"
    old.write_text("#!/bin/sh\necho 'QEMU emulator version 5.2.0 (Debian)'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(PermanentError, match=r"5\.2\.0; 7\.1 or later") as too_old:
        await find_qemu("old-qemu")
    assert too_old.value.reason == "QemuTooOld"
    with pytest.raises(PermanentError) as missing:
        await find_qemu("no-qemu")
    assert missing.value.reason == "QemuMissing"
