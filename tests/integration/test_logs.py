"""The log of a real agent: each line names what it is about, and the pass that it comes from."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, bare_vm


def lines(agent: AgentProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (agent.folder / "agent.log").read_text().splitlines()]


def test_lines_name_their_resource_and_their_pass(agent: AgentProcess) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", bare_vm("web", 'restart = "always"'))
    agent.drop("odd.toml", "[vm.odd]\ncpus = 0\n")
    agent.start()
    os.kill(int(agent.vm("web")["pid"]), signal.SIGKILL)
    agent.vmhost("wait", "settled", "--timeout", "60")
    agent.vmhost("pause", "web")
    agent.terminate()

    found = lines(agent)
    assert all(line["resource"] for line in found)
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for line in found:
        by_kind.setdefault(line.get("kind", ""), []).append(line)
    first, second = by_kind["launch-vm"]
    assert first["resource"] == second["resource"] == "vm/web"
    assert 0 < by_kind["create-bridge"][0]["pass_id"] <= first["pass_id"] < by_kind["release-vm"][0]["pass_id"]
    assert by_kind["release-vm"][0]["pass_id"] < by_kind["end-vm"][0]["pass_id"] < second["pass_id"]
    assert by_kind["pause-vm"][0]["pass_id"] > second["pass_id"]
    for kind in ("started", "ended", "unit-error", "intent"):  # no pass is behind these
        assert all("pass_id" not in line for line in by_kind[kind]), kind
