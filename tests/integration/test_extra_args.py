"""extra-args: the device is there, the guest is marked, and QEMU's refusal is told in its own words."""

from __future__ import annotations

import json
import os
import resource
import signal
import tomllib
from typing import Any

import tomli_w

from tests.agent_process import AgentProcess
from tests.integration.conftest import bare_vm
from tests.integration.waiting import wait_for


def conditions(agent: AgentProcess, name: str) -> dict[str, dict[str, Any]]:
    return {condition["type"]: condition for condition in agent.vm(name)["conditions"]}


def reasons(agent: AgentProcess, name: str) -> list[tuple[str, str]]:
    (found,) = json.loads(agent.vmhost("why", name, "--json"))["found"]
    return [(one["topic"], one["text"]) for one in found["reasons"]]


def test_a_guest_with_extra_args_runs_marked_and_in_sync(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", 'extra-args = ["-device", "edu,id=extra"]'))
    agent.start()
    agent.vmhost("wait", "in-sync", "--timeout", "60")
    web = agent.vm("web")
    assert (web["state"], web["in_sync"], web["pending"]) == ("running", True, [])
    assert set(conditions(agent, "web")) == {"Unsupported"}
    with open(f"/proc/{web['pid']}/cmdline", "rb") as cmdline:
        assert cmdline.read().endswith(b"\0-device\0edu,id=extra\0")
    told = reasons(agent, "web")
    assert ("next", "nothing: it is as its unit says") in told
    assert any(topic == "condition" and "not promised any more" in text for topic, text in told)
    agent.kill()
    agent.start()
    assert (agent.vm("web")["pid"], set(conditions(agent, "web"))) == (web["pid"], {"Unsupported"})
    agent.drop("web.toml", bare_vm("web"))
    wait_for(lambda: agent.vm("web")["pending"])
    assert agent.pending("web") == [("extra-args", '["-device", "edu,id=extra"]', "")]
    agent.vmhost("restart", "web")
    assert agent.vm("web")["conditions"] == []


def test_what_qemu_refuses_is_told_in_its_words(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", 'extra-args = ["-device", "no-such-thing"]'))
    agent.drop("db.toml", bare_vm("db"))
    agent.start(settle=False)
    agent.vmhost("wait", "running", "db", "--timeout", "60")
    refusal = "-device no-such-thing: 'no-such-thing' is not a valid device model name"
    # Between two tries there is nothing to tell but the try itself.
    wait_for(lambda: any(refusal in text for topic, text in reasons(agent, "web") if topic == "condition"))
    agent.drop("web.toml", bare_vm("web"))
    agent.vmhost("wait", "running", "web", "--timeout", "60")


def test_what_the_sandbox_forbids_is_told_as_that(agent: AgentProcess) -> None:
    # The bridge helper would be a program of its own, which QEMU's sandbox forbids it to run.
    agent.drop("web.toml", bare_vm("web", 'extra-args = ["-netdev", "bridge,id=extra,br=lo"]'))
    agent.drop("db.toml", bare_vm("db"))
    agent.start(settle=False)
    agent.vmhost("wait", "running", "db", "--timeout", "60")
    told = "QEMU of web did not start: killed by SIGSYS: its sandbox forbids what it asked for; it says nothing"
    wait_for(lambda: any(told in text for topic, text in reasons(agent, "web") if topic == "condition"))


def test_a_command_line_that_the_kernel_does_not_take_is_no_reason_to_try_again(agent: AgentProcess) -> None:
    before = resource.getrlimit(resource.RLIMIT_STACK)
    many = ", ".join(['""'] * 30_000)  # each takes a pointer as well
    agent.drop("web.toml", bare_vm("web", f"extra-args = [{many}]"))
    resource.prlimit(0, resource.RLIMIT_STACK, (1 << 20, before[1]))  # of which a command line may have a quarter
    try:
        agent.start()
    finally:
        resource.prlimit(0, resource.RLIMIT_STACK, before)
    (web,) = (one for one in agent.vm("web")["conditions"] if one["type"] != "Unsupported")
    assert web["reason"] == "CommandLineTooLong"
    assert "shorten extra-args" in web["message"]
    assert agent.status()["agent"]["settled"]
    agent.drop("web.toml", bare_vm("web"))
    agent.vmhost("wait", "running", "web", "--timeout", "60")


def test_the_signal_that_ends_a_running_guest_is_told(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    os.kill(agent.vm("web")["pid"], signal.SIGSEGV)
    wait_for(lambda: "QEMU of web was killed by SIGSEGV" in agent.vmhost("events"))


def test_a_guest_of_an_agent_that_knew_none_of_these_keys_is_taken_over_in_sync(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", f'disk.root = {{ path = "{agent.folder}/web.raw", size = "1M" }}'))
    agent.start()
    agent.kill()
    path = agent.run_dir / "vms" / "web" / "launch.toml"
    record = tomllib.loads(path.read_text())
    for key in ("extra_args", "vnc"):
        del record["spec"][key]
    for key in ("media", "bus"):
        del record["spec"]["disks"][0][key]
    path.write_text(tomli_w.dumps(record))
    agent.start()
    web = agent.vm("web")
    assert (web["pid"], web["in_sync"], web["pending"], web["conditions"]) == (record["pid"], True, [], [])
