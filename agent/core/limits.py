"""The limits of a guest as keys of its unit, what each needs of the host, and how low they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from agent.core.desired import Limits, VmSpec

CONTROLLERS = {"cpu-weight": "cpu", "cpu-quota": "cpu", "io-weight": "io", "tasks": "pids"}
"""The controller of control groups (cgroups(7)) that applies each key."""

QUOTA_PERCENT_US = 10_000
"""A hundredth of one CPU's second, in microseconds."""

POOL_TASKS, OTHER_TASKS = 64, 16
"""Threads of a QEMU beside one for each CPU: those that wait for disks (QEMU, THREAD_POOL_MAX_THREADS_DEFAULT), and its
main loop, its RCU, its screen and what libraries start: 3 to 5 were seen, with room for others."""


def tasks_needed(cpus: int) -> int:
    """How many tasks QEMU must be allowed: one that gets no thread when it wants one aborts (qemu_thread_create)."""
    return cpus + POOL_TASKS + OTHER_TASKS


def most_cpus(spec: VmSpec) -> int:
    """How many CPUs a guest's QEMU may come to have without being started anew."""
    return max(spec.cpus, spec.max_cpus or 0)


def limit_values(limits: Limits) -> Mapping[str, str]:
    """Limits by their keys, as an operator writes them; empty for one that is not given."""
    quota = limits.cpu_quota_us
    values = {
        "cpu-weight": limits.cpu_weight,
        "cpu-quota": None if quota is None else f"{quota / QUOTA_PERCENT_US:g}%",
        "io-weight": limits.io_weight,
        "tasks": limits.tasks,
    }
    return {key: "" if value is None else str(value) for key, value in values.items()}


def next_in_turn(names: Sequence[str], latest: str, most: int) -> Sequence[str]:
    """At most so many of these sorted names, those after the latest one first: all have their turn before any again."""
    after = [name for name in names if name > latest]
    return [*after, *(name for name in names if name <= latest)][:most]


def wanted_limits(spec: VmSpec, launched: VmSpec) -> Limits:
    """The limits of a running guest: those of its unit, with as many tasks as its QEMU needs as it was launched.

    Fewer CPUs, and fewer tasks with them, wait for a restart; until then the guest has the threads that it has.
    """
    tasks = spec.limits.tasks
    if tasks is None:
        return spec.limits
    return replace(spec.limits, tasks=max(tasks, tasks_needed(most_cpus(launched))))
