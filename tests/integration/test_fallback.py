"""An edit that QEMU refuses: the guest is back as it last ran, and the story is told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import AgentProcess, kill_qemu
from tests.integration.conftest import bare_vm
from tests.integration.waiting import wait_for

REFUSED = {
    "no such cpu": ('cpu = "no-such-model"', "no-such-model"),
    "no such device": ('extra-args = ["-device", "no-such-device"]', "no-such-device"),
    "no such argument": ('extra-args = ["-no-such-argument"]', "no-such-argument"),
    "a kernel that is none": ('kernel = "NO_KERNEL"', "kernel"),
}


def edit(agent: AgentProcess, more: str = "") -> None:
    agent.drop("web.toml", bare_vm("web", more))


def restart(agent: AgentProcess) -> float:
    """Have it started with its unit; how long it took until it runs again."""
    began = time.monotonic()
    agent.command("restart", "web", "--timeout", "60")
    wait_for(lambda: agent.vm("web")["state"] == "running")
    return time.monotonic() - began


def conditions(agent: AgentProcess) -> dict[str, str]:
    return {one["type"]: one["message"] for one in agent.vm("web")["conditions"]}


@pytest.mark.parametrize(("more", "words"), REFUSED.values(), ids=REFUSED)
def test_a_refused_edit_leaves_the_guest_as_it_ran(agent: AgentProcess, more: str, words: str, tmp_path: Path) -> None:
    no_kernel = tmp_path / "vmlinuz"
    no_kernel.write_bytes(b"no kernel " * 1000)
    more = more.replace("NO_KERNEL", str(no_kernel))
    edit(agent)
    agent.start()
    good = agent.vm("web")
    assert good["digest"] == good["digest_wanted"]
    edit(agent, more)
    wait_for(lambda: agent.vm("web")["pending"])
    took_s = restart(agent)
    print(f"back within {took_s:.1f} s, 1 s of them the stop")
    agent.vmhost("wait", "settled", "--timeout", "60")
    vm = agent.vm("web")
    assert vm["pid"] not in (None, good["pid"])
    assert vm["digest"] == good["digest"] != vm["digest_wanted"]
    assert [change["key"] for change in vm["pending"]] == [more.partition(" = ")[0]]
    assert words in conditions(agent)["FellBack"]

    reasons = json.loads(agent.vmhost("why", "web", "--json"))["found"][0]["reasons"]
    assert_told_in_order(
        [one["text"] for one in reasons if one["topic"] == "event"],
        ["restart of web asked for", "failed in", "failed in", "FellBack", "as it last ran: done"],
    )
    assert "tries again what QEMU refused" in reasons[-1]["text"]

    edit(agent)
    agent.vmhost("wait", "in-sync", "--timeout", "60")
    assert (agent.vm("web")["pid"], conditions(agent)) == (vm["pid"], {})


def assert_told_in_order(events: list[str], words: list[str]) -> None:
    at = -1
    for word in words:
        at = next((n for n, event in enumerate(events) if n > at and word in event), -2)
        assert at >= 0, (word, events)


def test_it_stays_with_what_ran_over_crashes_and_agents_and_is_tried_again_when_asked(agent: AgentProcess) -> None:
    edit(agent, 'restart = "always"')
    agent.start()
    edit(agent, 'restart = "always"\ncpu = "no-such-model"')
    wait_for(lambda: agent.vm("web")["pending"])
    restart(agent)
    agent.vmhost("wait", "settled", "--timeout", "60")
    agent.kill()
    agent.start()
    assert "FellBack" in conditions(agent)
    refused = launches_that_failed(agent)
    pid = agent.vm("web")["pid"]
    kill_qemu(pid, agent.run_dir)
    wait_for(lambda: agent.vm("web")["pid"] not in (None, pid) and agent.vm("web")["state"] == "running")
    assert launches_that_failed(agent) == refused, "it is known to be refused"
    restart(agent)
    assert launches_that_failed(agent) == refused + 2, "it is tried again when asked"
    assert "FellBack" in conditions(agent)

    edit(agent, 'restart = "always"\ncpu = "qemu64"')
    wait_for(lambda: "FellBack" not in conditions(agent))
    restart(agent)
    agent.vmhost("wait", "in-sync", "--timeout", "60")


def launches_that_failed(agent: AgentProcess) -> int:
    events: list[dict[str, Any]] = [json.loads(line) for line in agent.vmhost("events", "--json").splitlines()]
    return sum(one["kind"] == "launch-vm" and ": failed" in one["message"] for one in events)


def test_without_fallback_or_anything_that_ran_it_is_tried_and_told(agent: AgentProcess) -> None:
    edit(agent, 'cpu = "no-such-model"')
    agent.drop("db.toml", bare_vm("db", "fallback = false"))
    agent.start(settle=False)
    agent.vmhost("wait", "running", "db", "--timeout", "60")
    wait_for(lambda: launches_that_failed(agent) >= 3)
    wait_for(lambda: agent.vm("web")["pid"] is None)  # each attempt has one for a moment
    assert set(conditions(agent)) <= {"LaunchFailed"}

    agent.drop("db.toml", bare_vm("db", 'fallback = false\ncpu = "no-such-model"'))
    wait_for(lambda: agent.vm("db")["pending"])
    agent.command("restart", "db", "--timeout", "3")
    wait_for(lambda: (agent.vm("db")["state"], agent.vm("db")["pid"]) == ("failed", None))
