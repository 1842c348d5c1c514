"""The storm: bursts of faults, and after each of them everything that must hold."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.cli.client import NoAgentError
from tests.chaos.faults import AGENT, Burst, Hurt, draw
from tests.chaos.scene import Scene, leftovers, nics, strangers, violations
from tests.chaos.world import World, descriptors, is_stopped, look, rss_mib

SETTLED_WITHIN_S = 60.0
BURSTS = (1, 2, 4, 8, 12, 16)
"""How many faults a burst may have."""

MORE_DESCRIPTORS = 12
"""What an agent may hold open beyond what it held when it was first settled: control connections, requests."""

FOR_A_GUEST = 3
"""A process descriptor, the copy of it that the loop waits on, and a monitor connection."""

MORE_MIB = 40.0
LOOK_EVERY_S = 0.004
ALARMS = ("Traceback", "InternalError", "bug in an action", "Task exception was never retrieved")


class ViolationError(AssertionError):
    """Something that must always hold did not."""


@dataclass(slots=True)
class Kind:
    """What became of one kind of fault; `alone_s` is for faults that were inflicted while no agent ran."""

    count: int = 0
    longest_s: float = 0.0
    alone_s: float = 0.0


@dataclass(slots=True)
class Tally:
    """What the storm has done so far."""

    faults: int = 0
    bursts: int = 0
    kinds: dict[str, Kind] = field(default_factory=dict)
    longest_settle_s: float = 0.0
    most_descriptors: int = 0
    most_mib: float = 0.0


@dataclass(slots=True)
class Storm:
    """Rages over a scene until as many faults as asked for were inflicted, or something does not hold."""

    scene: Scene
    rng: random.Random
    tally: Tally = field(default_factory=Tally)
    _strangers: dict[str, str] = field(default_factory=dict)
    _agent: tuple[int, int, float] = (0, 0, 0.0)
    _log_read: int = 0

    def rage(self, faults: int, progress: Callable[[Tally], None] = lambda _: None) -> Tally:
        """Inflict so many faults. `ViolationError` says what did not hold, after which faults."""
        self._wait(lambda: not violations(look(self.scene.agent.run_dir), self.scene), "the first start")
        self._settle([])
        self._strangers = strangers(look(self.scene.agent.run_dir))
        while self.tally.faults < faults:
            self._burst(min(self.rng.choice(BURSTS), faults - self.tally.faults))
            progress(self.tally)
        return self.tally

    def _burst(self, size: int) -> None:
        scene, burst = self.scene, Burst()
        before = look(scene.agent.run_dir).pids
        inflicted = [(draw(scene, self.rng, burst), time.monotonic()) for _ in range(size)]
        for recover in burst.recoveries:
            recover()
        back_s = time.monotonic()
        self.tally.faults += size
        self.tally.bursts += 1
        pending = [(hurt, back_s if burst.recoveries else at_s) for hurt, at_s in inflicted]
        names = [hurt.kind for hurt, _ in inflicted]
        self._wait(lambda: self._heal(pending, burst), names)
        self._settle(names)
        self._check(names, before, burst)
        for vm in burst.ended & set(scene.wanted):
            scene.client.intent("start", vm)  # its operator forgives the end: backoff has tests of its own

    def _heal(self, pending: list[tuple[Hurt, float]], burst: Burst) -> bool:
        """Take the hurts that are healed from the list and note how long each took; whether none is left."""
        world = look(self.scene.agent.run_dir)
        wrong, now_s = violations(world, self.scene), time.monotonic()
        doubled = {vm: pids for vm, pids in world.pids.items() if len(pids) > 1}
        if doubled:
            raise ViolationError(f"guests run twice: {doubled}")
        for one in list(pending):
            hurt, since_s = one
            if not (hurt.resources & wrong.keys()) and self._is_back(hurt, world):
                pending.remove(one)
                kind = self.tally.kinds.setdefault(hurt.kind, Kind())
                kind.count += 1
                if burst.agent_down:
                    kind.alone_s = max(kind.alone_s, now_s - since_s)
                else:
                    kind.longest_s = max(kind.longest_s, now_s - since_s)
        return not pending

    def _is_back(self, hurt: Hurt, world: World) -> bool:
        """Whether the guests of a hurt run again, as the agent says and as another process where that is due."""
        if AGENT in hurt.resources and not self._states():
            return False
        if any(pid in world.pids.get(vm, ()) for vm, pid in hurt.old_pids.items()):
            return False
        names = {resource.removeprefix("vm/") for resource in hurt.resources if resource.startswith("vm/")}
        names &= set(self.scene.wanted)
        return not names or all(self._states().get(vm) == "running" for vm in names)

    def _states(self) -> dict[str, str]:
        try:
            return {vm["name"]: vm["state"] for vm in self.scene.client.status(2.0)["vms"]}
        except NoAgentError:
            return {}

    def _wait(self, holds: Callable[[], bool], after: object) -> None:
        deadline_s = time.monotonic() + SETTLED_WITHIN_S
        while not holds():
            if time.monotonic() > deadline_s:
                wrong = violations(look(self.scene.agent.run_dir), self.scene)
                raise ViolationError(f"not healed {SETTLED_WITHIN_S:g} s after {after}: {wrong or self._states()}")
            time.sleep(LOOK_EVERY_S)

    def _settle(self, names: list[str]) -> None:
        began_s = time.monotonic()
        settled, message = self.scene.client.wait("settled", None, SETTLED_WITHIN_S)
        if not settled:
            raise ViolationError(f"not settled {SETTLED_WITHIN_S:g} s after {names}: {message}")
        self.tally.longest_settle_s = max(self.tally.longest_settle_s, time.monotonic() - began_s)

    def _check(self, names: list[str], before: Mapping[str, tuple[int, ...]], burst: Burst) -> None:
        world = look(self.scene.agent.run_dir)
        wrong = list(violations(world, self.scene).values())
        wrong += [
            f"{vm} was {before.get(vm)} and is {world.pids.get(vm)}, which nobody asked for"
            for vm in before.keys() | world.pids.keys()
            if vm not in burst.ended and before.get(vm) != world.pids.get(vm)
        ]
        now = strangers(world)
        wrong += [f"{n} was\n{self._strangers[n]} and is\n{now[n]}" for n in now if now[n] != self._strangers[n]]
        wrong += [f"left over: {path}" for path in leftovers(self.scene)]
        wrong += [f"{pid} is still stopped" for pids in world.pids.values() for pid in pids if is_stopped(pid)]
        wrong += [*self._status_problems(), *self._leaks(), *self._alarms()]
        if wrong:
            raise ViolationError(f"after {names}: {'; '.join(wrong)}")

    def _status_problems(self) -> list[str]:
        """What the agent says that contradicts what is wanted."""
        status, scene = self.scene.client.status(), self.scene
        vms = {vm["name"]: vm for vm in status["vms"]}
        wrong = [f"{vm}: {vms.get(vm)}" for vm in scene.wanted if vms.get(vm, {}).get("state") != "running"]
        wrong += [f"{vm} is not in sync: {vms[vm]}" for vm in scene.wanted if vm in vms and not vms[vm]["in_sync"]]
        wrong += [f"{bridge['name']}: {bridge}" for bridge in status["bridges"] if not bridge["in_sync"]]
        held = {unit["file"].rpartition("/")[2] for unit in status["units"] if unit["state"] != "valid"}
        if held != {scene.files[vm] for vm in scene.broken}:
            wrong.append(f"held files are {sorted(held)}, broken ones {sorted(scene.broken)}")
        return wrong + [str(condition) for condition in status["agent"]["conditions"]]

    def _leaks(self) -> list[str]:
        """What one agent holds more than when it was first settled, beyond what each running guest needs."""
        pid, scene = self.scene.agent_pid, self.scene
        held, mib = descriptors(pid), rss_mib(pid)
        needed = sum(FOR_A_GUEST + len(nics(vm)) for vm in scene.wanted)
        count = held.total() - needed
        if self._agent[0] != pid:
            self._agent = (pid, count, mib)
        _, first_count, first_mib = self._agent
        self.tally.most_descriptors = max(self.tally.most_descriptors, held.total())
        self.tally.most_mib = max(self.tally.most_mib, mib)
        found = [f"descriptors: {first_count} + {needed} at first, now {dict(held)}"]
        found = found if count > first_count + MORE_DESCRIPTORS else []
        return found + ([f"memory: {first_mib:.0f} MiB at first, now {mib:.0f}"] if mib > first_mib + MORE_MIB else [])

    def _alarms(self) -> list[str]:
        """Lines of the agent's log that must never be there."""
        with open(self.scene.agent.folder / "agent.log", errors="replace") as log:
            log.seek(self._log_read)
            text = log.read()
            self._log_read = log.tell()
        return [line for line in text.splitlines() if any(alarm in line for alarm in ALARMS)]
