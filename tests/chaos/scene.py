"""The host that the storm rages over: ten guests on two bridges with ports, strangers' links, and what must hold."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agent.cli.client import AgentClient
from tests.agent_process import AgentProcess
from tests.chaos.world import World, qemu_pids
from tests.netns import ip

GUESTS = tuple(f"g{number}" for number in range(10))
BRIDGES = {"br-a": ("10.77.1.1/24", "port-a"), "br-b": ("10.77.2.1/24", "port-b")}
"""Bridges with their address and their host port."""

MACS = {"br-a": "02:77:00:00:00:0a", "br-b": "02:77:00:00:00:0b"}
STRANGERS = ("lo", "br-foreign", "in-foreign", "out-foreign", "t-foreign")
NOISE = ("noise0", "noise1")
"""Links that nobody owns and that are changed all the time."""


@dataclass(frozen=True, slots=True)
class Nic:
    """A guest's NIC as the scene's units say."""

    vm: str
    id: str
    bridge: str

    @property
    def tap(self) -> str:
        return f"{self.vm}-{self.id}"

    @property
    def mark(self) -> str:
        return f"vmhost:tap/{self.vm}/{self.id}"

    @property
    def resource(self) -> str:
        return f"tap/{self.vm}/{self.id}"


def nics(vm: str) -> tuple[Nic, ...]:
    """Every guest has a NIC on one bridge, each third one also on the other."""
    number = GUESTS.index(vm)
    first, second = ("br-a", "br-b") if number % 2 == 0 else ("br-b", "br-a")
    return (Nic(vm, "lan", first), Nic(vm, "dmz", second)) if number % 3 == 0 else (Nic(vm, "lan", first),)


def unit(vm: str, description: str = "") -> str:
    """A guest's unit: a real QEMU without kernel or disk, which runs its firmware."""
    head = f'[vm.{vm}]\nmemory = "32M"\naccel = "tcg"\nstop-timeout = "1s"\nrestart = "always"\n'
    tail = "".join(f'[vm.{vm}.nic.{nic.id}]\nbridge = "{nic.bridge}"\n' for nic in nics(vm))
    return f'{head}description = "{description}"\n{tail}'


def network_unit() -> str:
    """The unit of the bridges."""
    return "".join(
        f'[bridge.{name}]\naddresses = ["{address}"]\nports = ["{port}"]\nmac = "{MACS[name]}"\n'
        for name, (address, port) in BRIDGES.items()
    )


def make_port(port: str) -> None:
    """A host link that a bridge takes in, the end of a veth pair."""
    ip(f"link add {port} type veth peer name far-{port}")


@dataclass(slots=True)
class Scene:
    """The agent, what was done to it on purpose, and what is therefore wanted."""

    agent: AgentProcess
    stopped: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=lambda: {vm: f"{vm}.toml" for vm in GUESTS})
    edits: int = 0

    @property
    def client(self) -> AgentClient:
        return AgentClient(self.agent.run_dir)

    @property
    def agent_pid(self) -> int:
        assert self.agent.process is not None
        return self.agent.process.pid

    @property
    def wanted(self) -> list[str]:
        """The guests that must run."""
        return [vm for vm in GUESTS if vm not in self.stopped | self.removed]

    def set_up(self) -> None:
        """Make the strangers' links, drop the units and start the agent."""
        ip(
            "link add br-foreign type bridge",
            "link set br-foreign addrgenmode none",  # a link-local address is tentative first: strangers never change
            "link set br-foreign alias somebody-else up",
            "link add in-foreign type veth peer name out-foreign",
            "link set in-foreign addrgenmode none",
            "link set in-foreign master br-foreign up",
            "addr add 192.0.2.1/24 dev out-foreign",
            "tuntap add t-foreign mode tap",
            "link add noise0 type veth peer name noise1",
        )
        for _, port in BRIDGES.values():
            make_port(port)
        self.agent.drop("network.toml", network_unit())
        for vm in GUESTS:
            self.agent.drop(self.files[vm], unit(vm))
        self.start_agent()

    def start_agent(self) -> None:
        """Start the agent, to which removing many units is no slip here."""
        self.agent.start("--max-disruption", "1000000", settle=False)

    def tear_down(self) -> None:
        """End the agent and every QEMU of its run directory."""
        process = self.agent.process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGCONT)
            self.agent.kill()
        for pids in qemu_pids(self.agent.run_dir).values():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def pid(self, vm: str) -> int | None:
        """The pid of a guest's QEMU, if there is exactly one."""
        pids = qemu_pids(self.agent.run_dir).get(vm, ())
        return pids[0] if len(pids) == 1 else None


def violations(world: World, scene: Scene) -> dict[str, str]:
    """What is not as it must be, by resource."""
    found = dict(_guest_violations(world, scene))
    for vm in scene.wanted:
        for nic in nics(vm):
            found |= _link_violation(world, nic.resource, nic.tap, kind="tun", alias=nic.mark, master=nic.bridge)
    for name, (address, port) in BRIDGES.items():
        found |= _link_violation(world, f"bridge/{name}", name, kind="bridge", alias=f"vmhost:bridge/{name}")
        bridge = world.links.get(name)
        if bridge is not None and (bridge.addresses != {address} or bridge.mac != MACS[name]):
            found[f"bridge/{name}"] = f"{name} has {sorted(bridge.addresses)} and {bridge.mac}"
        found |= _link_violation(world, f"port/{port}", port, kind="veth", alias="", master=name)
    return found | dict(_surplus_links(world, scene))


def _guest_violations(world: World, scene: Scene) -> Iterator[tuple[str, str]]:
    for vm in GUESTS:
        pids = world.pids.get(vm, ())
        if len(pids) > 1:
            yield f"vm/{vm}", f"{vm} runs twice: {pids}"
        elif vm in scene.wanted and not pids:
            yield f"vm/{vm}", f"{vm} is lost"
        elif vm not in scene.wanted and pids:
            yield f"vm/{vm}", f"{vm} runs although nobody wants it"
    for vm in world.pids.keys() - set(GUESTS):
        yield f"vm/{vm}", f"nobody ever wanted {vm}"


def _link_violation(
    world: World, resource: str, name: str, *, kind: str, alias: str, master: str | None = None
) -> dict[str, str]:
    link = world.links.get(name)
    if link is None:
        return {resource: f"{name} is missing"}
    present = (link.kind, link.alias, link.master, link.up, link.mtu)
    wanted = (kind, alias, master, True, 1500)
    return {} if present == wanted else {resource: f"{name} is {present}, not {wanted}"}


def _surplus_links(world: World, scene: Scene) -> Iterator[tuple[str, str]]:
    known = {*STRANGERS, *NOISE, *BRIDGES}
    for _, port in BRIDGES.values():
        known |= {port, f"far-{port}"}
    for vm in GUESTS:
        if vm not in scene.removed:
            known |= {nic.tap for nic in nics(vm)}
    for name in world.links.keys() - known:
        yield f"link/{name}", f"nobody wants the link {name}"


def strangers(world: World) -> dict[str, str]:
    """Everything about the links that are not the agent's."""
    return {name: world.links[name].told if name in world.links else "gone" for name in STRANGERS}


def leftovers(scene: Scene) -> list[str]:
    """Files that should not be there any more: of guests that are gone (but their logs), of interrupted writes."""
    found = []
    for folder in (scene.agent.run_dir / "vms").iterdir():
        kept = {"lock", "qemu.log", "qemu.log.1"} if folder.name in scene.removed else None
        found += [str(path) for path in folder.iterdir() if kept is not None and path.name not in kept]
        found += [str(folder)] if folder.name not in GUESTS else []
    state = scene.agent.folder / "state"
    found += [str(path) for path in state.rglob("*") if path.name.endswith(".new") or ".broken-" in path.name]
    return sorted(found)


def flood(lines: int) -> subprocess.Popen[str]:
    """Have the kernel send link events for a while, more than a reader that sleeps can keep; the one who does it."""
    batch = "".join(f"link set noise0 mtu {1400 + number % 2}\n" for number in range(lines))
    process = subprocess.Popen(["ip", "-batch", "-"], stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(batch)
    process.stdin.close()
    return process


def run_folders(folder: Path) -> None:
    """Make the folders of an agent, passable for the users that QEMU runs as."""
    folder.chmod(0o755)
    (folder / "vmhost.d").mkdir()
