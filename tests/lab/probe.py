"""A probe in QEMU's place: what it can open. `probe.py run` starts it as a guest's service, `probe.py` is the probe.

Runs in a lab, with the packages of the agent; prints one line for each thing that it could do.
"""

from __future__ import annotations

import asyncio
import glob
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from agent.core.desired import VmSpec
from agent.host.launches import Launches, LaunchRecord
from agent.host.systemd import ServiceManager
from agent.runtime.starts import Start, UnitStarts

UID = 1_900_000_999
RUN = Path("/run/vmhost")
PROGRAM = "/var/cache/vmhost/probe.py"


def opens(path: str, mode: str = "rb") -> Callable[[], object]:
    """Opening a file."""
    return lambda: open(path, mode).close()


def connects(path: str) -> Callable[[], object]:
    """Connecting to a socket; one that serves somebody else takes the connection all the same."""
    return lambda: socket.socket(socket.AF_UNIX).connect(path)


def signals() -> None:
    """Sending nothing to another guest's QEMU."""
    os.kill(int(Path("/var/cache/vmhost/pid-of-web").read_text()), 0)


TRIES: dict[str, Callable[[], object]] = {
    "read another guest's disk": opens("/var/cache/vmhost/demo/web-data.qcow2"),
    "write another guest's disk": opens("/var/cache/vmhost/demo/web-data.qcow2", "r+b"),
    "talk to the agent": connects("/run/vmhost/agent.sock"),
    "talk to another guest's monitor": connects("/run/vmhost/vms/web/operator.sock"),
    "see other guests' folders": lambda: os.stat("/run/vmhost/vms/web"),
    "read another guest's record": opens("/run/vmhost/vms/web/launch.toml"),
    "read the agent's memory": opens("/var/lib/vmhost/state.toml"),
    "see the process of another guest": signals,
    "open the tap device": lambda: os.close(os.open("/dev/net/tun", os.O_RDWR)),
    "make an internet socket": lambda: socket.socket(socket.AF_INET).close(),
    "make a file in /var/tmp on the host": lambda: glob.glob("/var/tmp/start_cases.py")[0],
    "make a file outside of its folder": opens("/var/cache/vmhost/mark", "wb"),
    "use its own folder": opens("/run/vmhost/vms/probe/mark", "wb"),
}


def probe() -> None:
    """Try everything."""
    for what, attempt in TRIES.items():
        try:
            attempt()
        except (OSError, IndexError):
            continue
        print(what, flush=True)


async def run() -> None:
    """Start the probe as QEMU is started, and print what it printed."""
    launches = Launches(RUN)
    starts = UnitStarts(ServiceManager(), RUN)
    spec = VmSpec(name="probe", uuid="u", uid=UID)
    lock = launches.lock("probe", UID)
    argv = ["/opt/vmhost/bin/python3", "-I", PROGRAM]
    start = Start(spec, argv, [lock], launches.directory("probe"), launches.log_path("probe"))
    process, unit = await starts.start(start)
    os.close(lock)
    await process.wait_exit()
    record = LaunchRecord(spec, pid=process.pid, start_time=process.start_time, unit=unit)
    await starts.find_end(record)
    await starts.clear(record)
    print(launches.log_path("probe").read_text(), end="")


if __name__ == "__main__":
    asyncio.run(run()) if sys.argv[1:] == ["run"] else probe()
