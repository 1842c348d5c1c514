"""A QEMU that falls silent in the middle of a conversation: what is known of its devices once it speaks again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent.core.errors import OutcomeUnknownError
from agent.host.launches import Launches, LaunchRecord
from agent.host.notify import Notifier
from agent.runtime.descriptors import Descriptors
from agent.runtime.guest import Guest
from agent.runtime.starts import ChildStarts
from tests.qemu import launched, paused_vm, short_folder

BUS = "slot-0"


class Freezer:
    """Hears what QEMU answers, and stops it right after the first answer to one command; rings when a guest changed."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.pid = 0
        self.frozen = asyncio.Event()
        self.rung = asyncio.Event()

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(60.0):
            while not holds():
                self.rung.clear()
                await self.rung.wait()

    def heard(self, _vm: str, _event: str, _data: Mapping[str, Any]) -> None: ...

    def killed(self, _vm: str, _how: str) -> None: ...

    def refused(self, _command: str, _error_class: str) -> None: ...

    def reconnected(self, _vm: str) -> None: ...

    def answered(self, command: str, _seconds: float) -> None:
        if command == self.command and not self.frozen.is_set():
            os.kill(self.pid, signal.SIGSTOP)
            self.frozen.set()


@asynccontextmanager
async def served(freezer: Freezer) -> AsyncIterator[Guest]:
    """A guest that is served, by a QEMU of its own."""
    with short_folder() as folder:
        launches = Launches(folder)
        launches.open()
        async with launched(launches, paused_vm()) as qemu:
            freezer.pid = qemu.process.pid
            guest = Guest(
                LaunchRecord(qemu.spec, pid=qemu.process.pid),
                qemu.process,
                qemu.directory,
                Descriptors(Notifier()),
                lambda _source: freezer.rung.set(),
                freezer,
                ChildStarts(),
            )
            serving = asyncio.create_task(guest.serve())
            try:
                yield guest
            finally:
                os.kill(freezer.pid, signal.SIGCONT)
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
                if guest.monitor is not None:
                    await guest.monitor.close()


async def test_a_look_at_devices_that_gets_no_answer_is_taken_again() -> None:
    freezer = Freezer("query-status")
    async with served(freezer) as guest:
        await freezer.frozen.wait()
        await freezer.until(lambda: guest.monitor is None)
        os.kill(freezer.pid, signal.SIGCONT)
        await freezer.until(lambda: guest.devices is not None and guest.run_state == "prelaunch")


async def test_a_device_that_comes_after_nobody_waited_for_it_any_more_is_seen() -> None:
    freezer = Freezer("qom-get")
    async with served(freezer) as guest:
        await freezer.until(lambda: guest.devices is not None)
        await guest.execute("qom-get", {"path": "/machine", "property": "type"})
        with pytest.raises(OutcomeUnknownError):
            await guest.execute("device_add", {"driver": "virtio-rng-pci", "id": "late", "bus": BUS}, timeout_s=0.2)
        os.kill(freezer.pid, signal.SIGCONT)
        await freezer.until(lambda: "late" in (guest.devices or ()))
