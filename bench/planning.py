"""What a thousand units cost: planning alone, and one edit among them."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Iterator

from agent.core.allocation import Allocations
from agent.core.desired import Desired
from agent.core.marks import bridge_mark, tap_mark
from agent.core.observed import AddressState, DiskState, HostState, LinkState, NicBackend, NicState, Observed, VmState
from agent.core.planning import plan
from agent.unitfile.parse import parse_unit
from agent.unitfile.resolve import ResolveContext, UnitSource, resolve
from bench.figures import Figure
from bench.host import fresh_agent, start, wait_settled
from bench.netlink import IFLA_MTU, LinkEvents
from bench.starts import DEBOUNCE_MS

UNITS = 1000
ROUNDS = 12
PLAN_ROUNDS = 200


def _guest_unit(number: int) -> str:
    return (
        f'[vm.g{number}]\nmemory = "64M"\nenabled = false\n'
        f'[vm.g{number}.disk.root]\npath = "/srv/vm/g{number}.qcow2"\nsize = "1G"\n'
        f'[vm.g{number}.nic.lan]\nbridge = "br-bench"\n'
    )


BRIDGE = '[bridge.br-bench]\naddresses = ["10.77.0.1/24"]\n'


def _edited_unit(mtu: int) -> str:
    return f"[bridge.br-edit]\nmtu = {mtu}\n"


def one_edit(rounds: int = ROUNDS) -> Iterator[Figure]:
    """One file among a thousand is changed; its change is planned, carried out and seen in the kernel."""
    with fresh_agent() as agent:
        agent.drop("net.toml", BRIDGE)
        agent.drop("edit.toml", _edited_unit(1500))
        for number in range(UNITS - 2):
            agent.drop(f"g{number}.toml", _guest_unit(number))
        start(agent)
        bridge, spent = socket.if_nametoindex("br-edit"), []
        for round_ in range(rounds):
            mtu = 1400 + round_
            with LinkEvents() as events:
                began = time.perf_counter()
                agent.drop("edit.toml", _edited_unit(mtu))
                done = events.until(_has_mtu(bridge, mtu))
            spent.append((done - began) * 1000 - DEBOUNCE_MS)
            wait_settled(agent)
    yield Figure(
        f"one file changed among {UNITS:,} → in the kernel, debounce aside", "ms", spent, 50.0, _resolve_ms(), "resolve"
    )


def _has_mtu(ifindex: int, mtu: int) -> Callable[[int, dict[int, int]], bool]:
    return lambda index, new: index == ifindex and new.get(IFLA_MTU) == mtu


def _units() -> list[tuple[str, bytes]]:
    guests = [(f"g{n}.toml", _guest_unit(n).replace("enabled = false\n", "").encode()) for n in range(UNITS - 2)]
    return [("net.toml", BRIDGE.encode()), ("edit.toml", _edited_unit(1500).encode()), *guests]


def _resolve_ms(rounds: int = ROUNDS) -> list[float]:
    """Parse and resolve a changed file among a thousand, without agent."""
    parsed = {path: parse_unit(path, data) for path, data in _units()}
    context = ResolveContext("machine", uuid.UUID(int=7), Allocations(), {}, {})
    sources = [UnitSource(unit, unit) for unit in parsed.values()]
    first = resolve(sources, context)
    context = ResolveContext("machine", uuid.UUID(int=7), first.allocations, first.incumbents, {})
    resolve(sources, context)
    spent = []
    for round_ in range(rounds):
        began = time.perf_counter()
        parsed["edit.toml"] = parse_unit("edit.toml", _edited_unit(1400 + round_).encode())
        resolve([UnitSource(unit, unit) for unit in parsed.values()], context)
        spent.append((time.perf_counter() - began) * 1000)
    return spent


def nothing_to_do(rounds: int = PLAN_ROUNDS) -> Iterator[Figure]:
    """`plan` for a thousand guests that are all as they should be."""
    desired, observed = settled_world()
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        decided = plan(desired, observed, 1000.0)
        spent.append((time.perf_counter() - began) * 1000)
        if decided.actions:
            raise RuntimeError(f"not settled: {decided.actions[0]}")
    yield Figure(f"`plan` for {len(desired.vms):,} guests, nothing to do", "ms", spent, 5.0)


def settled_world() -> tuple[Desired, Observed]:
    """A thousand guests with a NIC and a disk each, and a host on which they all run."""
    context = ResolveContext("machine", uuid.UUID(int=7), Allocations(), {}, {})
    more = [(f"g{n}.toml", _guest_unit(n).replace("enabled = false\n", "").encode()) for n in (UNITS - 2, UNITS - 1)]
    units = [unit for unit in (*_units(), *more) if unit[0] != "edit.toml"]
    desired = resolve([UnitSource(parse_unit(path, data)) for path, data in units], context).desired
    spec = desired.bridges["br-bench"]
    mark, addresses = bridge_mark(spec.name), tuple(AddressState(address, own=True) for address in spec.addresses)
    links = {spec.name: LinkState(2, spec.name, "bridge", True, spec.mtu, spec.mac, None, mark, 0, addresses)}
    vms, disks = {}, {}
    for index, (name, vm) in enumerate(desired.vms.items(), start=3):
        (nic,), (disk,) = vm.nics, vm.disks
        links[nic.tap] = LinkState(index, nic.tap, "tun", True, nic.mtu, nic.mac, 2, tap_mark(name, nic.id))
        nics = {nic.id: NicState(NicBackend.ATTACHED, nic.tap)}
        vms[name] = VmState(vm, True, 10_000 + index, run_state="running", nics=nics)
        disks[disk.path] = DiskState(True, True, True, disk.size_bytes)
    return desired, Observed(links=links, vms=vms, disks=disks, host=HostState(boot_id="now"))
