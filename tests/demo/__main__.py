"""Runs the demo; see `python -m tests.demo --help`. Exit 0 only if everything healed."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.agent_process import AgentProcess
from tests.netns import ip, network_namespace
from tests.probe import Outage, Uptime, answers_within, tell_guest, uptime

UNITS = Path(__file__).resolve().parents[2] / "units" / "demo"
HOST = "192.168.77.10"
BRIDGE = "br-demo"
BOOT_TIMEOUT_S = 90.0
HEAL_TIMEOUT_S = 30.0


class Demonstrated(Protocol):
    """An agent that is shown: one of the demo's own, or an installed service (tests/lab)."""

    def vm(self, name: str) -> dict[str, Any]:
        """What `status` says of one guest."""

    def kill(self) -> None:
        """Kill the agent."""

    def start(self) -> None:
        """Return when an agent serves again and has settled."""

    def vmhost(self, *words: str) -> str:
        """Run `vmhost`, which must exit with 0; its output."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, how it is inflicted, and whether the guest must live through it."""

    title: str
    inflict: Callable[[Demonstrated], object]
    lives_on: bool = True
    timeout_s: float = HEAL_TIMEOUT_S


def kill_qemu(agent: Demonstrated) -> None:
    os.kill(int(str(agent.vm("web")["pid"])), signal.SIGKILL)


def restart_agent(agent: Demonstrated) -> None:
    agent.kill()
    agent.start()


def kill_agent_and_delete_tap(agent: Demonstrated) -> None:
    agent.kill()
    ip("link del web-lan")
    agent.start()


FAULTS = (
    Fault("tap deleted", lambda _: ip("link del web-lan")),
    Fault("tap taken out of its bridge", lambda _: ip("link set web-lan nomaster")),
    Fault("tap set down", lambda _: ip("link set web-lan down")),
    Fault("tap's MTU changed", lambda _: ip("link set web-lan mtu 600")),
    Fault("bridge deleted", lambda _: ip("link del br-demo")),
    Fault("bridge set down", lambda _: ip("link set br-demo down")),
    Fault("bridge's address deleted", lambda _: ip("addr del 192.168.77.1/24 dev br-demo")),
    Fault("bridge's MAC changed", lambda _: ip("link set br-demo address 02:00:00:00:00:77")),
    Fault("agent killed and started again", restart_agent),
    Fault("tap deleted while no agent ran", kill_agent_and_delete_tap),
    Fault("QEMU killed", kill_qemu, lives_on=False, timeout_s=BOOT_TIMEOUT_S),
    Fault("guest powered itself off", lambda _: tell_guest(HOST, "poweroff -f"), False, BOOT_TIMEOUT_S),
    Fault("guest panicked", lambda _: tell_guest(HOST, "echo c > /proc/sysrq-trigger"), False, BOOT_TIMEOUT_S),
)


def say(text: str, took_s: float | None = None, note: str = "") -> None:
    figure = "" if took_s is None else f"{took_s * 1000:9.1f} ms" if took_s < 5 else f"{took_s:9.1f} s "
    print(f"{text:<36} {figure}  {note}".rstrip(), flush=True)


def go_through(agent: Demonstrated, fault: Fault) -> bool:
    """Inflict one fault and tell for how long the guest was gone; whether it healed as it must."""
    before, pid = uptime(HOST), agent.vm("web")["pid"]
    try:
        took_s = time_outage(agent, fault) if fault.lives_on else time_reboot(agent, fault, before)
        after, new_pid = uptime(HOST), agent.vm("web")["pid"]
        agent.vmhost("wait", "in-sync", "--timeout", "60")
    except (TimeoutError, OSError, RuntimeError) as error:
        say(fault.title, None, f"NOT HEALED: {error}")
        return False
    same = (pid, before.boot) == (new_pid, after.boot)
    if same is not fault.lives_on:
        say(fault.title, took_s, "NOT AS IT MUST: " + ("the guest was restarted" if fault.lives_on else "no new guest"))
        return False
    say(fault.title, took_s, "same QEMU, guest unaware" if same else "new QEMU, booted again")
    return True


def time_outage(agent: Demonstrated, fault: Fault) -> float:
    """The longest time that the guest did not answer its neighbours, in a fault that it lives through."""
    with Outage(HOST, BRIDGE) as outage:
        fault.inflict(agent)
        answers_within(HOST, fault.timeout_s, BRIDGE)
        agent.vmhost("wait", "in-sync", "--timeout", "60")
    return outage.longest_s()


def time_reboot(agent: Demonstrated, fault: Fault, before: Uptime) -> float:
    """From the fault until the guest, booted again, takes a TCP connection."""
    began = time.perf_counter()
    fault.inflict(agent)
    wait_for_boot_after(before, fault.timeout_s)
    return time.perf_counter() - began


def wait_for_boot_after(before: Uptime, timeout_s: float) -> None:
    """Return once the guest answers as another boot than before."""
    deadline = time.monotonic() + timeout_s
    while True:
        answers_within(HOST, max(deadline - time.monotonic(), 0.0), BRIDGE)
        try:
            if uptime(HOST, 2.0).boot != before.boot:
                return
        except (OSError, KeyError, ValueError):
            time.sleep(0.02)  # the old guest is just going, the new one not yet listening


def run(keep: bool) -> int:
    """The whole demo in a namespace of its own; 0 if all healed."""
    folder = Path(tempfile.mkdtemp(prefix="vmhost-demo-"))
    folder.chmod(0o755)  # each QEMU, under a user of its own, passes through to its run directory
    healed = False
    agent = AgentProcess(folder)
    with network_namespace():
        try:
            healed = show(agent)
            if keep and healed:
                stay(agent)
        finally:
            with contextlib.suppress(RuntimeError):
                for name in ("db", "web"):
                    agent.vmhost("stop", name)
            agent.end()
    if healed:
        shutil.rmtree(folder)
    else:
        print(f"what was written meanwhile is in {folder}", flush=True)
    return 0 if healed else 1


def show(agent: AgentProcess) -> bool:
    """Start, drop the units, and go through the faults; whether all healed."""
    began = time.perf_counter()
    agent.start()
    say("agent started", time.perf_counter() - began, "in a network namespace of its own")
    began = time.perf_counter()
    shutil.copytree(UNITS, agent.units, dirs_exist_ok=True)
    agent.vmhost("wait", "running", "web", "--timeout", "60")
    say("units dropped, guest runs", time.perf_counter() - began, ", ".join(sorted(p.name for p in UNITS.iterdir())))
    answers_within(HOST, BOOT_TIMEOUT_S, BRIDGE)
    say("guest answers on TCP", time.perf_counter() - began, "it booted a real kernel, in software emulation")
    results = [go_through(agent, fault) for fault in FAULTS]
    print()
    print(f"{sum(results)} of {len(results)} faults healed", flush=True)
    return all(results)


def stay(agent: AgentProcess) -> None:
    """Leave everything up until Ctrl-C, and say what to type."""
    assert agent.process is not None
    enter = f"nsenter -t {agent.process.pid} -n"
    command = f"{enter} {Path(sys.executable).parent / 'vmhost'} {' '.join(agent.flags)}"
    print(f"\nIt stays up until Ctrl-C. In another terminal:\n  {command} status\n  {command} events -f")
    print(f"  {enter} ip link del web-lan\n  {enter} nc {HOST} 7777\n  $EDITOR {agent.units}/web.toml", flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        print("ending the guests and the agent", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="stay up afterwards, and say what to type next")
    return run(parser.parse_args().keep)


if __name__ == "__main__":
    sys.exit(main())
