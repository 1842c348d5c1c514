"""Every expression of every dashboard and alert, before a real Prometheus that scrapes a real agent."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from dashboards.alerts import ALERTS
from dashboards.model import Annotation, Dashboard, Panel
from dashboards.written import DASHBOARDS
from tests.agent_process import AgentProcess, kill_qemu
from tests.integration.conftest import BRIDGE_LINK, GUEST, bare_vm
from tests.integration.waiting import wait_for
from tests.netns import ip
from tests.probe import answers_within, run_in_guest
from tests.prometheus import SUFFIXES, Prometheus, prometheus

pytestmark = pytest.mark.timeout(600)  # a boot under TCG, then three looks of the agent at its guest

RULES = Path(__file__).parents[2] / "dashboards" / "alerts.yml"
TARGET = "127.0.0.1:9177"
TAP = "hurt-lan"
"""Of a guest of its own: where the tap of `web` went over and over, its MAC would never be learnt."""

BOOT_S = 180.0
DATA_S = 240.0
"""Block jobs are asked for in every twelfth look, each ten seconds."""
VARIABLES = {"$__rate_interval": "10s", "$instance": TARGET, "$vm": "web|db", "$bridge": BRIDGE_LINK}
OF_ONE_GUEST = {**VARIABLES, "$vm": "web"}
ONLY_UNDER_SYSTEMD = frozenset({"vmhost_vm_pressure_seconds_total"})
"""Drawn from control groups, which guests have only as services of their own."""

NETWORK = f"""
[bridge.{BRIDGE_LINK}]
addresses = ["10.77.0.1/24"]
nat = true
dhcp = {{ range = ["10.77.0.100", "10.77.0.110"] }}
"""
PORTS = '[bridge.br-b]\nports = ["br-theirs"]\n[bridge.br-c]\nports = ["lo"]\n'
"""The kernel puts no bridge into a bridge; a port that carries addresses is a finding."""
READ_AND_WRITE = (
    "dd if=/dev/zero of=/dev/vda bs=64k count=32 conv=fsync; dd if=/dev/vda of=/dev/null bs=64k count=32 iflag=direct"
)


def web(agent: AgentProcess, boot_files: str, more: str = "") -> str:
    return (
        f'[vm.web]\nmemory = "128M"\naccel = "tcg"\nrestart = "always"\npublish = ["8080:80"]\n{boot_files}'
        f'[vm.web.disk.data]\npath = "{agent.folder}/data.raw"\nsize = "16M"\n'
        f'[vm.web.nic.lan]\nbridge = "{BRIDGE_LINK}"\naddress = "{GUEST}"\n{more}'
    )


def expressions() -> Iterator[tuple[str, str]]:
    """Each with where it is from; variables are filled in as Grafana does."""
    for dashboard in DASHBOARDS:
        chosen = OF_ONE_GUEST if dashboard.name == "guest" else VARIABLES
        for place, expr in _of_dashboard(dashboard):
            yield f"{dashboard.name}: {place}", _filled(expr, chosen)
    for alert in ALERTS:
        for bound in alert.bounds:
            yield alert.name, bound.expr


def _of_dashboard(dashboard: Dashboard) -> Iterator[tuple[str, str]]:
    shown: list[Panel | Annotation] = [
        *dashboard.annotations,
        *(panel for row in dashboard.rows for panel in row.panels),
    ]
    for one in shown:
        if isinstance(one, Annotation):
            yield one.name, one.expr
        else:
            yield from ((one.title, query.expr) for query in one.queries)


def _filled(expr: str, chosen: dict[str, str]) -> str:
    for name, value in chosen.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


def _names(expr: str) -> set[str]:
    return {SUFFIXES.sub("", name) for name in re.findall(r"vmhost_\w+", expr)}


def _delete_tap(agent: AgentProcess) -> None:
    ip(f"link del {TAP}")
    agent.vmhost("wait", "settled", "--timeout", "60")


def _trouble(agent: AgentProcess, boot_files: str, server: Prometheus) -> None:
    """One of each kind of what panels tell of: a fault, a hold, a mistake, a job, and what is refused."""
    _delete_tap(agent)
    wait_for(lambda: server.numbers('vmhost_repairs_total{kind="tap"}'))
    _delete_tap(agent)  # a second time, as a rate is drawn from two
    agent.vmhost("hold", "db")
    agent.drop("broken.toml", "[vm.broken]\nmemroy = 1\n")
    ip("link add br-theirs type bridge")
    agent.drop("ports.toml", PORTS)
    _start_block_job(agent)
    image = agent.folder / "no-image.qcow2"
    image.write_bytes(bytes(4096))
    agent.drop("web.toml", web(agent, boot_files, f'[vm.web.disk.bad]\npath = "{image}"\n'))


def _start_block_job(agent: AgentProcess) -> None:
    """Copy the disk to nowhere, so slowly that it goes on until the test is over."""
    with on_operators_monitor(agent) as tell:
        (disk,) = (one["inserted"] for one in tell("query-block") if "inserted" in one)
        tell("blockdev-add", {"driver": "null-co", "node-name": "nowhere", "size": 16 << 20})
        job = {"job-id": "copy", "device": disk["node-name"], "target": "nowhere", "sync": "full", "speed": 16384}
        tell("blockdev-backup", job)


@contextlib.contextmanager
def on_operators_monitor(agent: AgentProcess) -> Iterator[Callable[..., Any]]:
    """Commands with arguments to the QEMU of `web`; each returns what QEMU does."""
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(10)
        monitor.connect(str(agent.run_dir / "vms/web/operator.sock"))
        answers = monitor.makefile("r")
        answers.readline()

        def tell(command: str, arguments: Mapping[str, object] = MappingProxyType({})) -> Any:
            monitor.sendall(json.dumps({"execute": command, "arguments": dict(arguments)}).encode())
            answer: dict[str, Any] = {}
            while not {"return", "error"} & answer.keys():
                answer = json.loads(answers.readline())
            assert "return" in answer, answer
            return answer["return"]

        tell("qmp_capabilities")
        yield tell


def test_every_panel_and_every_alert_has_data(agent: AgentProcess, boot_files: str) -> None:
    agent.drop("net.toml", NETWORK)
    agent.drop("db.toml", bare_vm("db"))
    agent.drop("hurt.toml", bare_vm("hurt", f'[vm.hurt.nic.lan]\nbridge = "{BRIDGE_LINK}"\ntap = "{TAP}"'))
    agent.drop("web.toml", web(agent, boot_files))
    with prometheus(agent.folder, target=TARGET, rules=RULES) as server:
        agent.start()
        wait_for(lambda: 3 in server.numbers("vmhost_vm_boot_duration_seconds_count"))
        kill_qemu(agent.vm("web")["pid"], agent.run_dir)
        agent.vmhost("wait", "running", "web", "--timeout", "60")
        answers_within(GUEST, BOOT_S, BRIDGE_LINK)
        _trouble(agent, boot_files, server)
        empty = list(expressions())
        for place, expr in [one for one in empty if _names(one[1]) & ONLY_UNDER_SYSTEMD]:
            assert server.numbers(expr) is not None, place  # it is PromQL, at least
            empty.remove((place, expr))

        def all_have_data() -> bool:
            run_in_guest(GUEST, READ_AND_WRITE, 60.0)
            _delete_tap(agent)
            empty[:] = [(place, expr) for place, expr in empty if not server.numbers(expr)]
            return not empty

        wait_for(all_have_data, DATA_S, says=lambda: "\n".join(("", *(f"{place}: {expr}" for place, expr in empty))))
        wanted = {name for _, expr in expressions() for name in _names(expr)}
        exported = server.names()
        assert wanted - exported - ONLY_UNDER_SYSTEMD == set()
