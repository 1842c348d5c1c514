"""The guest does what tests/guest/README.md says: a wrong guest would make every other test lie."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qemu.qmp import ConnectError, EventListener, QMPClient

from tests.integration.waiting import wait_for

COMMAND_LINE = "console=ttyS0 quiet init_on_alloc=0 panic=-1 vmhost.nic0=10.0.2.15/24,10.0.2.2"


@dataclass(frozen=True, slots=True)
class Running:
    """One booted guest; its two ports are forwarded to loopback by QEMU's user network."""

    qmp: QMPClient
    stops: EventListener
    answer_port: int
    shell_port: int

    async def ask(self, port: int, line: str = "", *, deadline_s: float = 0.5) -> str:
        """What the guest sends until it closes; empty if nobody listens there yet."""
        try:
            async with asyncio.timeout(deadline_s):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(line.encode() + b"\n")
                    return (await reader.read()).decode()
                finally:
                    writer.close()
        except (TimeoutError, ConnectionError):
            return ""

    async def boot_id(self, *, unlike: str = "") -> str:
        """The guest's boot id, as soon as it answers with another one than `unlike`."""
        async with asyncio.timeout(60):
            while True:
                found = re.fullmatch(r"uptime=[0-9.]+ boot=([0-9a-f-]{36})\n", await self.ask(self.answer_port))
                if found and found[1] != unlike:
                    return found[1]
                # Nothing tells when the guest starts to listen; the user network accepts connections before.
                await asyncio.sleep(0.05)

    async def run(self, line: str) -> str:
        """What a command line says; its shell may be there a moment later than what tells the boot id."""
        async with asyncio.timeout(60):
            while not (said := await self.ask(self.shell_port, line, deadline_s=60)):
                continue
        return said

    async def stopped_as(self) -> str:
        """QEMU's run state once the guest has ended."""
        async with asyncio.timeout(60):
            await self.stops.get()
        return await self.run_state()

    async def run_state(self) -> str:
        reply = await self.qmp.execute("query-status")
        assert isinstance(reply, dict)
        return str(reply["status"])


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])


async def _connected(qmp: QMPClient, monitor: Path) -> bool:
    """Whether QEMU took the connection; its socket is there a moment before it listens."""
    try:
        await qmp.connect(str(monitor))
    except ConnectError:
        return False
    return True


@asynccontextmanager
async def _boot(kernel: Path, initrd: Path, folder: Path, append: str = "") -> AsyncIterator[Running]:
    answer, shell = _free_ports()
    monitor = folder / "qmp.sock"
    forwards = f"hostfwd=tcp:127.0.0.1:{answer}-:7777,hostfwd=tcp:127.0.0.1:{shell}-:7778"
    disk = folder / "disk.raw"
    disk.write_bytes(bytes(4 << 20))
    options = f"""-accel tcg,tb-size=32 -machine q35 -m 128 -nodefaults -no-user-config -display none
        -action shutdown=pause,panic=pause -device pvpanic-pci -kernel {kernel} -initrd {initrd}
        -netdev user,id=lan,{forwards} -device virtio-net-pci,netdev=lan,romfile=
        -drive file={disk},format=raw,if=none,id=data -device virtio-blk-pci,drive=data
        -serial file:{folder}/console -qmp unix:{monitor},server=on,wait=off""".split()
    with (folder / "qemu.log").open("wb") as log:
        qemu = await asyncio.create_subprocess_exec(
            "qemu-system-x86_64", *options, "-append", f"{COMMAND_LINE} {append}", stdout=log, stderr=log
        )
    qmp = QMPClient("guest")
    try:
        async with asyncio.timeout(60):
            while not await _connected(qmp, monitor):
                assert qemu.returncode is None, (folder / "qemu.log").read_text()
                await asyncio.sleep(0.01)
        with qmp.listener("STOP") as stops:
            yield Running(qmp, stops, answer, shell)
    finally:
        with suppress(EOFError, ConnectionError):  # a QEMU that died under its test
            await qmp.disconnect()
        if qemu.returncode is None:
            qemu.kill()
        await qemu.wait()


async def test_boots_answers_reboots_and_obeys_the_power_button(
    guest_kernel: Path, guest_initrd: Path, tmp_path: Path
) -> None:
    async with _boot(guest_kernel, guest_initrd, tmp_path) as guest:
        first, console = await guest.boot_id(), tmp_path / "console"
        await asyncio.to_thread(wait_for, lambda: re.search(r"vmhost guest ready after [0-9.]+ s", console.read_text()))
        assert "insmod" not in console.read_text()  # a driver that does not load
        line = "mke2fs /dev/vda >/dev/null && mount /dev/vda /mnt && echo kept >/mnt/x && cat /mnt/x && ip route"
        said = await guest.run(line)
        assert said.startswith("kept\ndefault via 10.0.2.2 dev eth0")
        await guest.ask(guest.shell_port, "reboot -f")
        assert await guest.boot_id(unlike=first) != first
        await guest.qmp.execute("system_powerdown")
        assert await guest.stopped_as() == "shutdown"


async def test_ignores_the_power_button_when_told_and_reports_its_panic(
    guest_kernel: Path, guest_initrd: Path, tmp_path: Path
) -> None:
    async with _boot(guest_kernel, guest_initrd, tmp_path, "vmhost.acpi=ignore") as guest:
        await guest.boot_id()
        await guest.qmp.execute("system_powerdown")
        # It would be gone after 0.1 s: the press has been seen when a later command line is answered.
        assert await guest.run("sleep 1; echo alive") == "alive\n"
        assert "vmhost guest: power button" in (tmp_path / "console").read_text()
        assert await guest.run_state() == "running"
        await guest.ask(guest.shell_port, "echo c >/proc/sysrq-trigger")
        assert await guest.stopped_as() == "guest-panicked"


def test_image_is_readable_by_everyone(guest_kernel: Path, guest_initrd: Path) -> None:
    for path in (guest_kernel, guest_initrd):
        assert path.stat().st_mode & 0o444 == 0o444, path
