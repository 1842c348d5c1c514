"""Guests that the real host cannot hold all at once: real QEMUs, whose memory stays untouched."""

from __future__ import annotations

import json
import re
from pathlib import Path

from agent.core.desired import VmSpec
from agent.core.planner.room import need_bytes
from agent.host.host_memory import look_at_memory
from tests.agent_process import AgentProcess
from tests.integration.conftest import bare_vm


def available_mib() -> int:
    match = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    assert match is not None
    return int(match[1]) >> 10


def large(name: str, memory_mib: int, more: str = "") -> str:
    return bare_vm(name, more).replace('"32M"', f'"{memory_mib}M"')


def test_what_the_host_cannot_hold_waits_until_there_is_room(agent: AgentProcess) -> None:
    memory_mib = available_mib() * 6 // 10
    agent.drop("a.toml", large("first", memory_mib))
    agent.start()
    agent.drop("b.toml", large("second", memory_mib))
    agent.drop("c.toml", bare_vm("small"))
    agent.vmhost("wait", "settled", "--timeout", "60")
    assert agent.vm("first")["state"] == "running"
    assert agent.vm("small")["state"] == "running"
    taken = look_at_memory([agent.vm("small")["pid"]], kvm=False).resident_bytes
    small = VmSpec("small", "", 0, memory_mib=32, accel="tcg")
    assert all(10 << 20 < had < need_bytes(small, kvm=False) for had in taken.values())
    second = agent.vm("second")
    assert second["pid"] is None
    condition = second["conditions"][0]
    assert condition["type"] == "MemoryShort"
    assert condition["message"].startswith(f"needs {memory_mib + 85 + -(-memory_mib // 256)} MiB ({memory_mib} and ")
    plan = json.loads(agent.vmhost("plan", "--json"))
    assert [(one["type"], one["resource"]) for one in plan["conditions"]] == [("MemoryShort", "vm/second")]
    assert plan["actions"] == []
    assert "MemoryShort" in agent.vmhost("why", "second")
    assert agent.command("wait", "in-sync", "--timeout", "0.1").returncode == 1

    first = agent.vm("first")["pid"]
    agent.drop("b.toml", large("second", memory_mib, "overcommit = true"))
    agent.vmhost("wait", "running", "second", "--timeout", "90")
    agent.drop("b.toml", large("second", memory_mib))
    agent.vmhost("wait", "in-sync", "--timeout", "60")  # a key that is asked at a start only
    agent.vmhost("restart", "second", "--no-wait")
    agent.vmhost("wait", "settled", "--timeout", "60")
    assert agent.vm("second")["conditions"][0]["type"] == "MemoryShort"
    assert agent.vm("first")["pid"] == first

    agent.vmhost("stop", "first")
    agent.vmhost("wait", "running", "second", "--timeout", "90")
