"""Guests that start: one after another, and two hundred at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from agent.host.processes import cpu_seconds, resident_bytes
from agent.runtime.host_found import start_slots
from bench.figures import Figure
from bench.host import bare_unit, fresh_agent, pids, start, status, wait_settled
from bench.qemu import bare_guests, command_line, kill_and_wait, released_at, start_bare
from tests.agent_process import AgentProcess

DEBOUNCE_MS = 50.0
ROUNDS = 12
MANY = 200
REST_S = 40.0
"""More than a full look's 30 s, so that one is always among what is measured."""


def one_by_one(rounds: int = ROUNDS) -> Iterator[Figure]:
    """A file is dropped, and a QEMU is killed; each beside a QEMU that is started by hand."""
    dropped: list[float] = []
    killed: list[float] = []
    bare: list[float] = []
    with fresh_agent() as agent:
        start(agent)
        agent.drop("model.toml", bare_unit(agent, "model"))
        wait_settled(agent)
        argv, directory = command_line(pids(agent)["model"]), guest_directory(agent, "model")
        for number in range(rounds):
            dropped.append(_drop_ms(agent, f"g{number}"))
            spent_s, process = start_bare(argv, directory, agent.folder / f"b{number}")
            process.kill()
            process.wait()
            bare.append(spent_s * 1000)
        running = pids(agent)
        killed += [_killed_ms(agent, f"g{number}", running[f"g{number}"]) for number in range(rounds)]
    aside = [value - DEBOUNCE_MS for value in dropped]
    by_hand = "QEMU's exec, QMP handshake, `cont`"
    yield Figure("file dropped → QEMU released", "ms", dropped, 250.0)
    yield Figure("the same, debounce aside", "ms", aside, None, bare, by_hand, 1.5)
    yield Figure("QEMU's exit seen → new one released", "ms", killed, 60.0, bare, by_hand)


def guest_directory(agent: AgentProcess, name: str) -> Path:
    """A guest's run directory."""
    return agent.run_dir / "vms" / name


def _drop_ms(agent: AgentProcess, name: str) -> float:
    began = time.time()
    agent.drop(f"{name}.toml", bare_unit(agent, name))
    spent_s = released_at(guest_directory(agent, name)) - began
    wait_settled(agent)
    return spent_s * 1000


def _killed_ms(agent: AgentProcess, name: str, pid: int) -> float:
    ended = kill_and_wait(pid)
    spent_s = released_at(guest_directory(agent, name)) - ended
    wait_settled(agent)
    return spent_s * 1000


def many_at_once(number: int = MANY, rounds: int = 3) -> Iterator[Figure]:
    """Two hundred guests from nothing, over a restart of the agent, and at rest."""
    with fresh_agent() as agent:
        for guest in range(number):
            agent.drop(f"g{guest}.toml", bare_unit(agent, f"g{guest}"))
        settled_s = start(agent)
        before = pids(agent)
        if len(before) != number:
            raise RuntimeError(f"{len(before)} of {number} guests run")
        restarted = [_restart_s(agent, before) for _ in range(rounds)]
        cpu_percent, resident_mb = _at_rest(agent)
        argv = command_line(before["g0"])
        first = str(agent.folder)
    with fresh_agent() as other:
        moved = [word.replace(first, str(other.folder)) for word in argv]
        with bare_guests(moved, guest_directory(other, "g0"), other.folder, number, start_slots()) as bare_s:
            pass
    yield Figure(
        f"{number} guests, nothing → settled",
        "s",
        [settled_s],
        None,
        [bare_s],
        f"{start_slots()} at a time by hand",
        1.2,
    )
    yield Figure(f"agent restarted → {number} adopted, none restarted", "s", restarted, 1.5)
    yield Figure(f"at rest with {number} guests: of a core", "%", [cpu_percent], 0.5)
    yield Figure(f"at rest with {number} guests: memory", "MB", [resident_mb], 80.0)


def _restart_s(agent: AgentProcess, before: dict[str, int]) -> float:
    agent.kill()
    spent_s = start(agent)
    if pids(agent) != before:
        raise RuntimeError("guests were restarted")
    return spent_s


def _at_rest(agent: AgentProcess) -> tuple[float, float]:
    """Percent of a core, and megabytes in RAM, of an agent that has nothing to do."""
    status(agent)
    pid = agent.process.pid if agent.process is not None else 0
    time.sleep(5.0)  # what a start leaves to be done: the first publishing, the first traffic
    before = cpu_seconds(pid)
    time.sleep(REST_S)
    after, resident = cpu_seconds(pid), resident_bytes(pid)
    if before is None or after is None or resident is None:
        raise RuntimeError("the agent is gone")
    return 100 * (after - before) / REST_S, resident / 1e6
