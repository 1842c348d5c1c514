"""The faults: what each does to the host, and what must have healed afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.cli.client import NoAgentError, RefusedError
from tests.chaos.scene import BRIDGES, GUESTS, Nic, Scene, flood, make_port, nics, unit

AGENT = "agent"
"""The agent as a resource: it is well when its socket answers."""

FLOOD_LINES = 3_000


@dataclass(frozen=True, slots=True)
class Hurt:
    """What a fault hurt. `old_pids`: guests that must run as another process afterwards, with the one that ended."""

    kind: str
    resources: frozenset[str] = frozenset()
    old_pids: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Burst:
    """Some faults that are inflicted together; `recoveries` are done at its end, by the hand that did the fault.

    `ended` guests have (or will have) a new process; `fragile` ones must not get one in this burst, because their unit
    is half written or their tap has lost its mark: what they would be launched as is then another question. `returned`
    have a file again that the agent may not have read yet: with a mistake in it now there is nothing to run.
    """

    recoveries: list[Callable[[], None]] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)
    fragile: set[str] = field(default_factory=set)
    returned: set[str] = field(default_factory=set)
    agent_down: bool = False
    agent_killed: bool = False


Inflict = Callable[[Scene, random.Random, Burst], Hurt | None]
"""Does the fault to something drawn at random; None where it does not apply just now, and nothing was done."""


def _ip_did(command: str) -> bool:
    return subprocess.run(["ip", *command.split()], capture_output=True, timeout=20, check=False).returncode == 0


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def on_tap(kind: str, command: str) -> Inflict:
    """A fault of one `ip` command on the tap of a guest that runs."""

    def inflict(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
        nic = _running_nic(scene, rng)
        if nic is None or not _ip_did(command.format(tap=nic.tap, other=_other(nic.bridge), number=rng.randrange(999))):
            return None
        return Hurt(kind, frozenset({nic.resource}))

    return inflict


def on_bridge(kind: str, command: str) -> Inflict:
    """A fault of one `ip` command on a bridge, which hurts its ports as well."""

    def inflict(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
        name = rng.choice(sorted(BRIDGES))
        if not _ip_did(command.format(bridge=name, number=rng.randrange(10, 99))):
            return None
        taps = {nic.resource for vm in scene.wanted for nic in nics(vm) if nic.bridge == name}
        return Hurt(kind, frozenset({f"bridge/{name}", f"port/{BRIDGES[name][1]}", *taps}))

    return inflict


def on_port(kind: str, command: str) -> Inflict:
    """A fault of one `ip` command on a bridge's host port."""

    def inflict(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
        _, port = BRIDGES[rng.choice(sorted(BRIDGES))]
        return Hurt(kind, frozenset({f"port/{port}"})) if _ip_did(command.format(port=port)) else None

    return inflict


def lose_port(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    """A host port disappears, and comes back as another link of the same name."""
    _, port = BRIDGES[rng.choice(sorted(BRIDGES))]
    if not _ip_did(f"link del {port}"):
        return None
    burst.recoveries.append(lambda: make_port(port))
    return Hurt("port lost and returned", frozenset({f"port/{port}"}))


def unmark_tap(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    nic = _running_nic(scene, rng)
    if nic is None or nic.vm in burst.ended or not _ip_did(f"link set {nic.tap} alias nobody"):
        return None
    burst.fragile.add(nic.vm)
    return Hurt("tap's mark changed", frozenset({nic.resource}))


def kill_qemu(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    vm, pid = _endable(scene, rng, burst)
    if vm is None or pid is None or not _signal(pid, signal.SIGKILL):
        return None
    burst.ended.add(vm)
    resources = {f"vm/{vm}", *(nic.resource for nic in nics(vm))}
    return Hurt("QEMU killed", frozenset(resources), {vm: pid})


def hang_qemu(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    """QEMU is stopped for the time of the burst."""
    vm = _one_of(scene.wanted, rng)
    pid = scene.pid(vm) if vm else None
    if vm is None or pid is None or not _signal(pid, signal.SIGSTOP):
        return None
    burst.recoveries.append(lambda: _ignore(_signal(pid, signal.SIGCONT)))
    return Hurt("QEMU stopped and continued", frozenset({f"vm/{vm}"}))


def kill_agent(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    """The agent is killed, and is away for the rest of the burst."""
    if burst.agent_down:
        return None
    scene.agent.kill()
    burst.agent_down = burst.agent_killed = True
    burst.recoveries.append(scene.start_agent)
    return Hurt("agent killed", frozenset({AGENT}))


def freeze_agent(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    """The agent is stopped for the rest of the burst."""
    if burst.agent_down or not _signal(scene.agent_pid, signal.SIGSTOP):
        return None
    pid, burst.agent_down = scene.agent_pid, True
    burst.recoveries.append(lambda: _ignore(_signal(pid, signal.SIGCONT)))
    return Hurt("agent stopped and continued", frozenset({AGENT}))


def flood_netlink(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    process = flood(FLOOD_LINES)
    burst.recoveries.append(lambda: _ignore(process.wait(60)))
    return Hurt("netlink flooded")


def edit_unit(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    vm = _one_of([vm for vm in GUESTS if vm not in scene.removed | scene.broken | burst.fragile], rng)
    if vm is None:
        return None
    scene.edits += 1
    scene.agent.drop(scene.files[vm], unit(vm, f"edit {scene.edits}"))
    return Hurt("unit edited")


def half_write_unit(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    """An editor writes a file in place, and is seen half way: what is there is valid, and says less."""
    vm = _one_of([vm for vm in scene.wanted if vm not in scene.broken | burst.ended | burst.fragile], rng)
    if vm is None:
        return None
    burst.fragile.add(vm)
    path, text = scene.agent.units / scene.files[vm], unit(vm)
    path.write_text(text[: text.index("restart")])
    burst.recoveries.append(lambda: _ignore(path.write_text(text)))
    return Hurt("unit half written")


def break_unit(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    """A file is saved with a mistake and stays so."""
    unbreakable = scene.removed | scene.broken | burst.fragile | burst.returned
    vm = _one_of([vm for vm in GUESTS if vm not in unbreakable], rng)
    if vm is None:
        return None
    scene.broken.add(vm)
    scene.agent.drop(scene.files[vm], unit(vm) + rng.choice(["nonsense", 'bridge = "twice"\n', "\x00", "[vm.x"]))
    return Hurt("unit broken")


def mend_unit(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    vm = _one_of(sorted(scene.broken - burst.fragile), rng)
    if vm is None:
        return None
    scene.broken.discard(vm)
    scene.agent.drop(scene.files[vm], unit(vm))
    return Hurt("unit mended")


def move_unit(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    """A file is renamed: the guest goes on as the same."""
    vm = _one_of([vm for vm in scene.wanted if vm not in scene.broken | burst.fragile], rng)
    if vm is None:
        return None
    old = scene.files[vm]
    scene.files[vm] = f"{vm}.toml" if old != f"{vm}.toml" else f"moved-{vm}.toml"
    (scene.agent.units / old).rename(scene.agent.units / scene.files[vm])
    return Hurt("unit file renamed")


def remove_unit(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    candidates = [vm for vm in scene.wanted if vm not in scene.broken | burst.fragile | burst.ended]
    vm = _one_of(candidates, rng)
    if vm is None or len(scene.removed) > 2:
        return None
    scene.removed.add(vm)
    burst.ended.add(vm)
    (scene.agent.units / scene.files[vm]).unlink()
    return Hurt("unit removed", frozenset({f"vm/{vm}", *(f"link/{nic.tap}" for nic in nics(vm))}))


def return_unit(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    vm = _one_of(sorted(scene.removed - burst.ended), rng)
    if vm is None:
        return None
    scene.removed.discard(vm)
    burst.ended.add(vm)
    burst.returned.add(vm)
    scene.agent.drop(scene.files[vm], unit(vm))
    return Hurt("unit returned", frozenset({f"vm/{vm}", *(nic.resource for nic in nics(vm))}))


def stop_guest(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    vm, _ = _endable(scene, rng, burst)
    if vm is None or len(scene.stopped) > 2 or not _asked(scene, burst, "stop", vm):
        return None
    scene.stopped.add(vm)
    burst.ended.add(vm)
    return Hurt("guest stopped by its operator", frozenset({f"vm/{vm}"}))


def start_guest(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    vm = _one_of(sorted(scene.stopped - burst.ended - burst.fragile), rng)
    if vm is None or not _asked(scene, burst, "start", vm):
        return None
    scene.stopped.discard(vm)
    burst.ended.add(vm)
    return Hurt("guest started by its operator", frozenset({f"vm/{vm}", *(nic.resource for nic in nics(vm))}))


def restart_guest(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    vm, pid = _endable(scene, rng, burst)
    if vm is None or pid is None or not _asked(scene, burst, "restart", vm):
        return None
    burst.ended.add(vm)
    return Hurt("guest restarted by its operator", frozenset({f"vm/{vm}"}), {vm: pid})


def reset_guest(scene: Scene, rng: random.Random, burst: Burst) -> Hurt | None:
    vm, _ = _endable(scene, rng, burst)
    if vm is None or not _asked(scene, burst, "reset", vm):
        return None
    return Hurt("guest reset by its operator", frozenset({f"vm/{vm}"}))


def _asked(scene: Scene, burst: Burst, verb: str, vm: str) -> bool:
    if burst.agent_down:
        return False
    try:
        scene.client.intent(verb, vm)
    except (NoAgentError, RefusedError):
        return False
    return True


def _one_of(candidates: list[str], rng: random.Random) -> str | None:
    return rng.choice(candidates) if candidates else None


def _running_nic(scene: Scene, rng: random.Random) -> Nic | None:
    vm = _one_of(scene.wanted, rng)
    return rng.choice(nics(vm)) if vm else None


def _endable(scene: Scene, rng: random.Random, burst: Burst) -> tuple[str | None, int | None]:
    """A guest that runs and may get a new process, with its present pid."""
    vm = _one_of([vm for vm in scene.wanted if vm not in burst.ended | burst.fragile], rng)
    return vm, scene.pid(vm) if vm else None


def _other(bridge: str) -> str:
    return next(name for name in sorted(BRIDGES) if name != bridge)


def _ignore(_: object) -> None:
    """A recovery has no result."""


FAULTS: tuple[tuple[int, Inflict], ...] = (
    (120, kill_qemu),
    (60, hang_qemu),
    (120, on_tap("tap deleted", "link del {tap}")),
    (80, on_tap("tap out of its bridge", "link set {tap} nomaster")),
    (70, on_tap("tap down", "link set {tap} down")),
    (60, on_tap("tap's MTU changed", "link set {tap} mtu 600")),
    (50, on_tap("tap renamed", "link set {tap} name storm{number}")),
    (40, on_tap("tap in another bridge", "link set {tap} master {other}")),
    (30, unmark_tap),
    (50, on_bridge("bridge deleted", "link del {bridge}")),
    (40, on_bridge("bridge down", "link set {bridge} down")),
    (30, on_bridge("bridge's MTU changed", "link set {bridge} mtu 1300")),
    (40, on_bridge("bridge's MAC changed", "link set {bridge} address 02:99:00:00:00:{number}")),
    (60, on_bridge("bridge's address flushed", "-4 addr flush dev {bridge}")),
    (30, lose_port),
    (30, on_port("port out of its bridge", "link set {port} nomaster")),
    (30, on_port("port down", "link set {port} down")),
    (6, kill_agent),
    (8, freeze_agent),
    (3, flood_netlink),
    (25, edit_unit),
    (15, half_write_unit),
    (15, break_unit),
    (20, mend_unit),
    (10, move_unit),
    (6, remove_unit),
    (12, return_unit),
    (8, stop_guest),
    (16, start_guest),
    (8, restart_guest),
    (10, reset_guest),
)
"""Each fault with its weight."""


def draw(scene: Scene, rng: random.Random, burst: Burst) -> Hurt:
    """Inflict one fault that applies now."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            hurt = rng.choices([inflict for _, inflict in FAULTS], [weight for weight, _ in FAULTS])[0](
                scene, rng, burst
            )
            if hurt is not None:
                return hurt
