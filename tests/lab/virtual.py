"""The virtual lab: the Debian of tests/lab/ in QEMU, with the cloud kernel, a real systemd and cgroup v2.

Emulated (TCG), so it needs no /dev/kvm: some ten seconds on an idle machine until a command runs. It has two CPUs,
2 GiB, two network cards that see only each other, and no other network but what is made inside. What it writes goes to
files that are unlinked already, and QEMU dies with the thread that started it (prctl(2), PR_SET_PDEATHSIG), so nothing
is left running, whatever becomes of the tests.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab.image import Image
from tests.lab.machine import CommandFailedError
from tests.lab.wire import Running, Wire, WireClosedError

BOOT_TIMEOUT_S = 300.0
RUN_TIMEOUT_S = 240.0
MEMORY = "2048M"
CARDS = ("52:54:00:00:10:00", "52:54:00:00:10:01")
"""The MACs of eth0 and eth1: PCI cards, each in a slot of its own, joined by a cable; down, and in nobody's use."""
APPEND = "console=ttyS0 quiet panic=-1 init_on_alloc=0 mitigations=off net.ifnames=0 systemd.show_status=false"


class VirtualLab:
    """One machine. `boot` it, `run` commands in it, and `kill` it whatever happened."""

    def __init__(self, image: Image, folder: Path, disks: tuple[Path, ...] = ()) -> None:
        self._image = image
        self._folder = folder
        self._disks = disks
        self._qemu: subprocess.Popen[bytes] | None = None
        self._wire: Wire | None = None
        self.boot_s = 0.0
        """How long it took until the command agent answered."""

    @property
    def console(self) -> str:
        """What the machine's kernel and QEMU itself wrote."""
        texts = [self._folder / "console.log", self._folder / "qemu.log"]
        return "".join(path.read_text(errors="replace") for path in texts if path.exists())

    @property
    def pid(self) -> int:
        """The pid of its QEMU; 0 while there is none."""
        return self._qemu.pid if self._qemu is not None else 0

    def boot(self) -> None:
        """Boot, and return when a command can be run; systemd may still be starting units."""
        began_s = time.monotonic()
        with open(self._folder / "qemu.log", "ab") as log:
            self._qemu = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(self._folder)},  # where snapshot=on keeps what is written, unlinked
            )
        port = self._folder / "agent.sock"
        self._wait(port.exists, "QEMU to open its sockets")
        self._wire = Wire(port)
        self._wait(lambda: self._agent().greeted(0.5), "the machine's command agent to answer")
        if self._agent().closed:
            raise RuntimeError(f"the virtual lab's QEMU has ended: {self.console[-2000:]}")
        self.boot_s = time.monotonic() - began_s

    def wait_for_systemd(self) -> None:
        """Return when every unit that is to start has, or failed to."""
        self.output("systemctl is-system-running --wait", check=False, timeout_s=BOOT_TIMEOUT_S)

    def _command(self) -> list[str]:
        disks = []
        for number, path in enumerate((self._image.disk, *self._disks)):
            drive = f"file={str(path).replace(',', ',,')},format=raw,if=none,id=d{number},snapshot=on,cache=unsafe"
            disks += ["-drive", drive, "-device", f"virtio-blk-pci,drive=d{number}"]
        cards = []
        for number, mac in enumerate(CARDS):
            cards += ["-device", f"pcie-root-port,id=slot{number},chassis={number + 1}"]
            cards += ["-netdev", f"hubport,id=end{number},hubid=0"]
            cards += [
                "-device",
                f"virtio-net-pci,id=card{number},bus=slot{number},netdev=end{number},mac={mac},romfile=",
            ]
        where = str(self._folder).replace(",", ",,")
        return [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max"),
            *("-smp", "2", "-m", MEMORY, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd), "-append", APPEND),
            *("-serial", f"file:{where}/console.log", "-qmp", f"unix:{where}/qmp.sock,server=on,wait=off"),
            *("-chardev", f"socket,id=agent,path={where}/agent.sock,server=on,wait=off"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=vmhost-lab"),
            *disks,
            *cards,
        ]

    def _agent(self) -> Wire:
        if self._wire is None:
            raise WireClosedError("the virtual lab is not booted")
        return self._wire

    def start(self, command: str, stdin: bytes = b"") -> Running:
        """Start a shell command as the machine's root, and go on meanwhile."""
        return self._agent().start(["/bin/sh", "-c", command], stdin)

    def try_run(
        self, command: str, stdin: bytes | None = None, timeout_s: float = RUN_TIMEOUT_S
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a shell command as the machine's root, whatever it exits with."""
        try:
            code, out, err = self.start(command, stdin or b"").finish(timeout_s)
        except WireClosedError as error:
            raise RuntimeError(f"{command}: {error}: {self.console[-2000:]}") from error
        except TimeoutError as error:
            raise TimeoutError(f"{command}: {error}") from error
        return subprocess.CompletedProcess(command, code, out, err)

    def output(self, command: str, *, check: bool = True, timeout_s: float = RUN_TIMEOUT_S) -> str:
        """Run a shell command, which must exit with 0 unless `check` is off; its output."""
        done = self.try_run(command, timeout_s=timeout_s)
        if check and done.returncode != 0:
            said = (done.stdout + done.stderr).decode(errors="replace")
            raise CommandFailedError(f"{command}: exit {done.returncode}: {said}")
        return done.stdout.decode(errors="replace")

    def copy_in(self, source: Path, target: str) -> None:
        """Put a file of the host's into the machine, readable by everyone."""
        self.write(target, source.read_bytes())

    def write(self, target: str, data: bytes) -> None:
        """Put a file into the machine, whole or not at all; its folder is made."""
        path = shlex.quote(target)
        put = f'umask 022; mkdir -p "$(dirname {path})"; cat >{path}.part && mv {path}.part {path}'
        # The suffix keeps a unit directory's watcher from reading half a file.
        done = self.try_run(put, data)
        if done.returncode != 0:
            raise CommandFailedError(f"writing {target}: {done.stderr.decode(errors='replace')}")

    def wait_until(self, holds: Callable[[], bool], what: str, timeout_s: float = RUN_TIMEOUT_S) -> None:
        """Wait for what nothing announces to somebody outside of the machine."""
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"waited {timeout_s:.0f} s for {what}: {self.console[-2000:]}")
            time.sleep(0.2)

    def _wait(self, holds: Callable[[], bool], what: str) -> None:
        def holds_or_ended() -> bool:
            assert self._qemu is not None
            if self._qemu.poll() is not None:
                raise RuntimeError(f"the virtual lab's QEMU ended with {self._qemu.returncode}: {self.console[-2000:]}")
            return holds()

        self.wait_until(holds_or_ended, what, BOOT_TIMEOUT_S)

    def journal(self, lines: int = 150) -> str:
        """What its systemd and all services said, or why that cannot be had."""
        try:
            return self.output(f"journalctl --no-pager -o short-precise -n {lines}", check=False, timeout_s=60)
        except (RuntimeError, TimeoutError) as error:
            return f"{error}\n{self.console[-4000:]}"

    def kill(self) -> None:
        """Switch it off. It may be called twice, and before `boot`."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        for socket in ("agent.sock", "qmp.sock"):
            with contextlib.suppress(FileNotFoundError):
                (self._folder / socket).unlink()
