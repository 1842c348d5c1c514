"""What `virsh domstats` and Debian's prometheus-libvirt-exporter take for a guest like ours.

Their packages are unpacked, not installed, into a root in memory, and run in namespaces of mount, processes and
network: no service of the host's, none of its files. All of it ends with PID 1 of there, also when the bench is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.host.processes import cpu_seconds
from bench.figures import Figure, median, p99
from bench.host import KERNEL, halting_kernel
from tests.netns import ip, network_namespace

GUESTS = 50
SCRAPES = 100
SCRAPE_EVERY_S = 0.1
DOMSTATS = 20
REST_S = 5.0
"""Until the last guest has halted."""

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = CHECKOUT / "build" / "libvirt"
ROOT_SCRIPT = CHECKOUT / "bench" / "libvirt_root.sh"
LISTEN = "127.0.0.1:9177"
BRIDGE = "br-peer"
INSTALL_S, READY_S, COMMAND_S, END_S = 300.0, 30.0, 600.0, 30.0

DAEMON, EXPORTER = "libvirtd", "prometheus-libvirt-exporter"
COMM_LENGTH = 15
"""What the kernel keeps of a process's name (proc_pid_comm(5))."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What some guests took: each scrape of all of them, and microseconds of CPU a guest in ten seconds with one."""

    guests: int
    scrapes_ms: Sequence[float]
    cpu_us: float
    series: int
    """Those of guests in a scrape."""

    def each_us(self, took_ms: Sequence[float]) -> list[float]:
        """Microseconds a guest."""
        return [took * 1000 / self.guests for took in took_ms]


class MissingError(Exception):
    """There is nothing to compare with; why, in two words for the table."""


def compared(ours: Taken, number: int = GUESTS) -> Iterator[Figure]:
    """Each figure a guest, ours beside libvirt's of the same run; without libvirt its column says why."""
    scrape, cpu = f"a scrape, each of {ours.guests} guests", "CPU in 10 s with one scrape, each guest: the whole agent"
    try:
        theirs, domstats_ms, start_ms = _measured(number)
    except MissingError as why:
        yield Figure(scrape, "µs", ours.each_us(ours.scrapes_ms), bare_name=f"{EXPORTER}: {why}")
        yield Figure("the same", "µs", ours.each_us(ours.scrapes_ms), bare_name=f"`virsh domstats`: {why}")
        yield Figure(cpu, "µs", [ours.cpu_us], bare_name=f"{DAEMON} and exporter: {why}")
        yield Figure("series a guest", "", [ours.series / ours.guests], bare_name=f"{EXPORTER}: {why}")
        return
    exporter_us, virsh_us = theirs.each_us(theirs.scrapes_ms), theirs.each_us(domstats_ms)
    virsh = f"`virsh domstats`, its own start of {start_ms:.0f} ms included"
    for name, took_us, who in ((scrape, exporter_us, EXPORTER), ("the same", virsh_us, virsh)):
        bare_name = f"{who}, each of {number}; p99 {p99(took_us):.0f} µs"
        yield Figure(name, "µs", ours.each_us(ours.scrapes_ms), bare=took_us, bare_name=bare_name)
    yield Figure(cpu, "µs", [ours.cpu_us], bare=[theirs.cpu_us], bare_name=f"{DAEMON} and exporter, one scrape")
    bare = [theirs.series / number]
    yield Figure("series a guest", "", [ours.series / ours.guests], bare=bare, bare_name=EXPORTER)


def _measured(number: int) -> tuple[Taken, list[float], float]:
    """Scrapes of the exporter, milliseconds of each `virsh domstats`, and of a virsh that asks for next to nothing.

    MissingError if libvirt cannot be had.
    """
    _unpackable()
    with network_namespace(), tempfile.TemporaryDirectory(prefix="vmhost-peer-", dir="/var/tmp") as folder:
        ip(f"link add {BRIDGE} type bridge", f"link set {BRIDGE} up")
        with _root(Path(folder)) as members:
            try:
                return _asked(members, number)
            except (OSError, subprocess.SubprocessError) as error:
                raise _missing("failed", error) from error


def _unpackable() -> None:
    """Download what the host lacks, which its own libraries are part of."""
    try:
        make = ["make", "-s", "-C", str(CHECKOUT), "libvirt"]
        subprocess.run(make, check=True, timeout=INSTALL_S, capture_output=True, text=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise _missing("not installed", error) from error


def _missing(why: str, error: Exception) -> MissingError:
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
    print(f"libvirt: {why}: {error}\n{said}", file=sys.stderr, flush=True)
    return MissingError(why)


@contextlib.contextmanager
def _root(folder: Path) -> Iterator[dict[str, int]]:
    """The two programs in a root of their own, by name and pid, once both answer; nothing is left of it afterwards.

    If this process is killed, the kernel kills `unshare`, and so PID 1 of there, and so all others (prctl(2),
    PR_SET_PDEATHSIG; unshare(1), --kill-child; pid_namespaces(7)).
    """
    words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"]
    words += ["sh", str(ROOT_SCRIPT), str(folder), str(PACKAGES), LISTEN]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        members: dict[str, int] = {}
        try:
            deadline = time.monotonic() + READY_S
            while not _answers(members):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise _missing("did not start", RuntimeError(log.read().decode(errors="replace")))
                time.sleep(0.05)
                members = _members(process.pid)
            yield members
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill all; TimeoutError if they do not go."""
    inside = [os.pidfd_open(pid) for pid in _inside(process.pid)]
    try:
        process.kill()
        process.wait()
        deadline = time.monotonic() + END_S
        for pidfd in inside:
            if not select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"libvirt: processes are left {END_S:.0f} s after PID 1 was killed")
    finally:
        for pidfd in inside:
            os.close(pidfd)


def _members(pid: int) -> dict[str, int]:
    """Who runs in the namespace that a process made, by name."""
    found: dict[str, int] = {}
    for member in _inside(pid):
        with contextlib.suppress(OSError):
            found[Path(f"/proc/{member}/comm").read_text().rstrip()] = member
    return found


def _inside(pid: int) -> list[int]:
    """The processes in the namespace that a process made for its children; none if it has not made it yet."""
    found = []
    with contextlib.suppress(OSError):
        room = os.readlink(f"/proc/{pid}/ns/pid_for_children")
        for name in os.listdir("/proc") if room != os.readlink("/proc/self/ns/pid") else ():
            with contextlib.suppress(OSError):
                if name.isdecimal() and os.readlink(f"/proc/{name}/ns/pid") == room:
                    found.append(int(name))
    return found


def _answers(members: dict[str, int]) -> bool:
    if DAEMON not in members or EXPORTER[:COMM_LENGTH] not in members:
        return False
    try:
        _virsh(members, "uri")
        return "libvirt_up 1" in _scrape().splitlines()
    except (OSError, subprocess.SubprocessError):
        return False


def _asked(members: dict[str, int], number: int) -> tuple[Taken, list[float], float]:
    """Start guests, and ask for them again and again."""
    guests = Path(f"/proc/{members[DAEMON]}/root/guests")
    (guests / KERNEL).write_bytes(halting_kernel())
    for guest in range(number):
        (guests / f"g{guest}.xml").write_text(_domain(f"g{guest}"))
        for disk in ("a", "b"):
            with open(guests / f"g{guest}-{disk}.raw", "wb") as file:
                file.truncate(16 << 20)
        _virsh(members, f"define /guests/g{guest}.xml; start g{guest}")
    if (run := len(_virsh(members, "list --name").split())) != number:
        raise OSError(f"{run} of {number} guests run")
    time.sleep(REST_S)
    domstats_ms = [_timed_ms(lambda: _virsh(members, "domstats")) for _ in range(DOMSTATS)]
    start_ms = median([_timed_ms(lambda: _virsh(members, "uri")) for _ in range(DOMSTATS)])
    programs = [members[DAEMON], members[EXPORTER[:COMM_LENGTH]]]
    before, scrapes_ms = _cpu_s(programs), []
    for _ in range(SCRAPES):
        scrapes_ms.append(_timed_ms(_scrape))
        time.sleep(SCRAPE_EVERY_S)
    cpu_us = (_cpu_s(programs) - before) * 1e6 / SCRAPES / number
    series = sum('domain="' in line for line in _scrape().splitlines())
    return Taken(number, scrapes_ms, cpu_us, series), domstats_ms, start_ms


def _domain(name: str) -> str:
    """A guest as the bench's own are: 32 MB, two disks of 16 MB, a NIC, a kernel that halts (libvirt: formatdomain)."""
    disks = "".join(
        f'<disk type="file"><driver name="qemu" type="raw"/><source file="/guests/{name}-{disk}.raw"/>'
        f'<target dev="vd{disk}" bus="virtio"/></disk>'
        for disk in ("a", "b")
    )
    return f"""<domain type="qemu"><name>{name}</name><memory unit="MiB">32</memory>
<os><type arch="x86_64" machine="q35">hvm</type><kernel>/guests/{KERNEL}</kernel></os>
<devices>{disks}
<interface type="bridge"><source bridge="{BRIDGE}"/><model type="virtio"/></interface></devices></domain>
"""


def _virsh(members: dict[str, int], command: str) -> str:
    """What virsh prints, of the root of there and in the network of this thread."""
    words = ["chroot", f"/proc/{members[DAEMON]}/root", "virsh", "--quiet", "--connect", "qemu:///system", command]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=COMMAND_S)
    return done.stdout


def _scrape() -> str:
    with urllib.request.urlopen(f"http://{LISTEN}/metrics", timeout=COMMAND_S) as answer:
        text: str = answer.read().decode()
    return text


def _timed_ms(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return (time.perf_counter() - began) * 1000


def _cpu_s(pids: Sequence[int]) -> float:
    taken = [cpu_seconds(pid) for pid in pids]
    if None in taken:
        raise ProcessLookupError("libvirtd or its exporter is gone")
    return sum(filter(None, taken))
