"""The exporter of a real agent with real guests: all of the catalogue is there, and promtool has nothing to say."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest

from agent.telemetry.catalogue import CATALOGUE
from tests.agent_process import AgentProcess
from tests.exposition import Series, openmetrics_families, samples_of, text_families, value
from tests.integration.conftest import BRIDGE_LINK, GUEST, bare_vm
from tests.integration.waiting import wait_for
from tests.internet import Box
from tests.netns import ip
from tests.probe import answers_within, run_in_guest

BOOT_S = 180.0

ELSEWHERE = {"vm_pressure_seconds_total", "block_job_progress_ratio"}
"""What takes a control group for each guest and a kernel with PSI, which not every test host has, and a block job, of
which the agent begins none (tests/integration/test_dashboards.py)."""

HAPPENED = {
    *("passes_total", "pass_duration_seconds", "doorbell_rings_total", "convergence_seconds", "actions_total"),
    *("action_duration_seconds", "repairs_total", "repair_duration_seconds", "unit_reloads_total"),
    *("netlink_events_total", "qmp_command_duration_seconds", "qmp_events_total", "event_loop_lag_seconds"),
    *("vm_exits_total", "vm_restarts_total", "vm_boot_duration_seconds", "filtered_packets_total"),
    *("nic_receive_bytes_total", "nic_transmit_bytes_total", "nic_receive_packets_total"),
}
"""Of what is counted, what has happened in this test."""

NET = """
[bridge.br-test]
addresses = ["10.77.0.1/24"]
ports = ["up0"]
nat = true
dhcp = { range = ["10.77.0.100", "10.77.0.110"] }
"""


@pytest.fixture
def guests(agent: AgentProcess, boot_files: str) -> Iterator[AgentProcess]:
    """One guest that boots, one that is held, one that waits for ever; a port of the bridge has an address."""
    with Box("up0"):
        agent.drop("net.toml", NET)
        nic = f'nic.lan = {{ bridge = "br-test", address = "{GUEST}" }}'
        disk = f'disk.root = {{ path = "{agent.folder}/NAME.raw", size = "8M" }}'
        web = bare_vm(
            "web", f'{boot_files}publish = ["8080:80"]\nrestart = "always"\n{nic}\n{disk.replace("NAME", "web")}'
        )
        agent.drop("web.toml", web.replace('"32M"', '"128M"'))
        agent.drop("held.toml", bare_vm("held"))
        agent.drop("off.toml", bare_vm("off", f'after = ["path:/srv/none"]\n{disk.replace("NAME", "off")}'))
        agent.start()
        agent.vmhost("hold", "held")
        ip("addr add 203.0.113.5/24 dev up0")
        answers_within(GUEST, BOOT_S, BRIDGE_LINK)
        yield agent


def scrape(accept: str, encoding: str = "") -> tuple[bytes, dict[str, str]]:
    request = urllib.request.Request(
        "http://127.0.0.1:9177/metrics", headers={"Accept": accept, "Accept-Encoding": encoding}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read(), dict(answer.headers)


def seen(agent: AgentProcess) -> Series:
    return samples_of(text_families(agent.metrics().encode()))


def happened(agent: AgentProcess) -> set[str]:
    """Of what metrics a series is more than zero."""
    by_sample = {sample: metric.short for metric in CATALOGUE for sample in metric.samples}
    return {by_sample[name] for name, count in ((name, count) for (name, _), count in seen(agent).items()) if count > 0}


@pytest.mark.timeout(600)
def test_all_of_the_catalogue_is_seen_and_promtool_is_content(guests: AgentProcess) -> None:
    pid = int(guests.vm("web")["pid"])
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: guests.vm("web")["pid"] not in {None, pid}, 60.0)
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    ip("link del web-lan")
    guests.vmhost("wait", "settled", "--timeout", "60")
    answers_within(GUEST, 60.0, BRIDGE_LINK)
    run_in_guest(GUEST, "ip addr add 10.77.0.99/24 dev eth0; ping -c 1 -w 1 -I 10.77.0.99 10.77.0.1")  # not its own
    wait_for(lambda: happened(guests) >= HAPPENED, 60.0, lambda: str(HAPPENED - happened(guests)))

    by_sample = {sample: metric.short for metric in CATALOGUE for sample in metric.samples}

    def missing() -> set[str]:
        return {metric.short for metric in CATALOGUE} - {by_sample[name] for name, _ in seen(guests)}

    wait_for(lambda: missing() <= ELSEWHERE, 90.0, lambda: str(missing()))  # findings take the longest
    found = seen(guests)
    assert value(found, "vm_state", vm="web", state="running") == 1
    assert value(found, "vm_exits_total", vm="web", reason="killed") == 1
    assert value(found, "vm_exits_total", vm="held", reason="killed") == 0
    assert value(found, "conditions", kind="vm", name="off", type="Waiting") == 1
    assert value(found, "conditions", kind="vm", name="web", type="PausedOnIoError") == 0
    assert value(found, "block_operations_total", vm="off", disk="root", op="flush") == 0
    for source in ("filters", "guests", "links", "traffic", "units"):
        wait_for(lambda source=source: value(seen(guests), "snapshot_age_seconds", source=source) < 35)  # type: ignore[misc]

    body, headers = scrape("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "gzip")
    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert headers["Content-Encoding"] == "gzip"
    assert openmetrics_families(gzip.decompress(body))

    def in_both_forms() -> bool:
        body, _ = scrape("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "gzip")
        return samples_of(openmetrics_families(gzip.decompress(body))).keys() == seen(guests).keys()

    wait_for(in_both_forms)  # between two scrapes something may happen for the first time
    lint = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape("*/*")[0], capture_output=True, check=False, timeout=120
    )
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, b"", b"")


@pytest.mark.timeout(600)
def test_a_guest_that_is_gone_takes_its_series_with_it(agent: AgentProcess) -> None:
    agent.drop("one.toml", bare_vm("one", f'disk.root = {{ path = "{agent.folder}/one.raw", size = "1M" }}'))
    agent.drop("two.toml", bare_vm("two"))
    agent.start()
    wait_for(lambda: any("two" in dict(labels).values() for _, labels in seen(agent)))
    agent.vmhost("stop", "two")
    agent.vmhost("wait", "stopped", "two", "--timeout", "60")
    wait_for(lambda: value(seen(agent), "vm_exits_total", vm="two", reason="host") == 1)
    (agent.units / "two.toml").unlink()

    def left() -> list[str]:
        return [name for name, labels in seen(agent) if {"two"} & set(dict(labels).values())]

    wait_for(lambda: not left(), 60.0, lambda: str(left()))
    assert value(seen(agent), "vm_state", vm="one", state="running") == 1
