"""Real QEMU processes for tests, held at their first instruction: no kernel, no KVM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from agent.core.desired import VmSpec
from agent.core.errors import TransientError
from agent.core.qemu.argv import DiskSet, FirmwareSets, LaunchFiles, qemu_argv
from agent.host.disks import open_disk, prepare_boot_file
from agent.host.launches import Launches, LaunchRecord
from agent.host.logs import open_log
from agent.host.processes import Process, kill, spawn
from agent.host.qmp import Monitor, OnEvent

QEMU = "/usr/bin/qemu-system-x86_64"
UID = 1_900_000_123


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder that any user may pass, with a path short enough for sockets; pytest's own are neither."""
    folder = Path(tempfile.mkdtemp(prefix="vmhost-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def paused_vm(**changes: object) -> VmSpec:
    """A small guest."""
    plain: dict[str, object] = {"name": "web", "uuid": str(uuid.uuid4()), "uid": UID, "memory_mib": 32, "accel": "tcg"}
    return VmSpec(**(plain | changes))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Launched:
    """A QEMU that a test started."""

    launches: Launches
    spec: VmSpec
    process: Process
    monitors: list[Monitor] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return self.launches.directory(self.spec.name)

    def log(self) -> str:
        return self.launches.log_path(self.spec.name).read_text()

    async def monitor(self, on_event: OnEvent = lambda _name, _data: None) -> Monitor:
        """Connect as soon as QEMU listens."""
        async with asyncio.timeout(20):
            while True:
                try:
                    path = self.directory / "qmp.sock"
                    self.monitors.append(await Monitor.connect(path, 20, on_event, peer_uid=self.spec.uid))
                    return self.monitors[-1]
                except TransientError:
                    # Nothing tells when QEMU starts to listen, but the end of a QEMU that never will.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.process.wait_exit(), 0.002)
                        raise AssertionError(f"QEMU ended: {self.log()}") from None


@contextlib.asynccontextmanager
async def launched(
    launches: Launches,
    spec: VmSpec,
    tap_fds: dict[str, tuple[int, ...]] | None = None,
    extra: Sequence[str] = (),
    firmware: FirmwareSets | None = None,
) -> AsyncIterator[Launched]:
    """Start a guest's QEMU as the agent does; it is gone afterwards."""
    with ExitStack() as stack:
        lock = launches.lock(spec.name, spec.uid)
        stack.callback(os.close, lock)
        directory = launches.directory(spec.name)
        opened = {disk.id: open_disk(disk) for disk in spec.disks if disk.path}
        for disk in opened.values():
            stack.callback(disk.close)
        files = LaunchFiles(
            directory=str(directory),
            tap_fds=tap_fds or {},
            disk_sets={id_: DiskSet(n, disk.fds, disk.block_device) for n, (id_, disk) in enumerate(opened.items())},
            kernel=prepare_boot_file(spec.kernel, directory, spec.uid) if spec.kernel else None,
            initrd=prepare_boot_file(spec.initrd, directory, spec.uid) if spec.initrd else None,
            firmware=firmware,
        )
        launches.save(LaunchRecord(spec))
        log = open_log(launches.log_path(spec.name))
        stack.callback(os.close, log)
        argv = (*qemu_argv(spec, QEMU, files, kvm=False), *extra)
        process = await spawn(argv, uid=spec.uid, pass_fds=(lock, *files.fds), log=log, cwd=directory)
    guest = Launched(launches, spec, process)
    try:
        yield guest
    finally:
        kill(process)
        await process.wait_exit()
        for monitor in guest.monitors:
            await monitor.close()
