"""The operator's own monitor of a guest, asked past the agent."""

from __future__ import annotations

import json
import socket
from typing import Any

from tests.agent_process import AgentProcess


def on_monitor(agent: AgentProcess, *commands: str) -> Any:
    """Run commands on the operator's own monitor of `web`; what the last one returned."""
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(60)
        monitor.connect(str(agent.run_dir / "vms/web/operator.sock"))
        lines = monitor.makefile("r")
        lines.readline()
        answer: dict[str, Any] = {}
        for command in ("qmp_capabilities", *commands):
            monitor.sendall(json.dumps({"execute": command}).encode())
            answer = {}
            while "return" not in answer:
                answer = json.loads(lines.readline())
        return answer["return"]


def run_state(agent: AgentProcess) -> str:
    """What QEMU says that `web` does: `running`, `paused`, `shutdown`; empty where it has gone meanwhile."""
    try:
        return str(on_monitor(agent, "query-status")["status"])
    except (OSError, ValueError):
        return ""
