"""The whole agent tells people, by a real command and a real webhook, over its own restarts."""

from __future__ import annotations

import json
import os
import signal
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.agent_process import AgentProcess
from tests.integration import waiting
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, bare_vm
from tests.netns import ip

SECRET = "s3cr3t"


def wait_for(holds: Callable[[], object], timeout_s: float = 40.0) -> None:
    """What is told takes up to ten seconds by itself, and the machine may be busy."""
    waiting.wait_for(holds, timeout_s)


def make_command(agent: AgentProcess, ending: str = "") -> str:
    """A command that keeps each document as a file of its own."""
    path = agent.folder / "hook"
    path.write_text(f'#!/bin/sh\nt=$(mktemp {agent.folder}/part.XXXXXX); cat >"$t"; mv "$t" "$t.json"\n{ending}\n')
    path.chmod(0o755)
    return str(path)


def told(agent: AgentProcess) -> list[dict[str, Any]]:
    files = sorted(agent.folder.glob("part.*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in files]


def in_short(agent: AgentProcess) -> list[str]:
    return [f"{one['state']} {one['resource']} {one['type']}" for one in told(agent)]


def remembered(agent: AgentProcess) -> dict[str, Any]:
    path = agent.folder / "state/state.toml"
    found: dict[str, Any] = tomllib.loads(path.read_text()).get("told", {}) if path.exists() else {}
    return found


@contextmanager
def webhook() -> Iterator[tuple[str, list[bytes]]]:
    """A server in the test's own network namespace, and the bodies that it was sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *_: object) -> None:  # noqa: A002  # the base class calls it so
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://me:{SECRET}@127.0.0.1:{server.server_address[1]}/hooks/{SECRET}", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_each_problem_is_told_once_over_restarts_and_so_is_its_end(agent: AgentProcess) -> None:
    command = make_command(agent)
    ip(f"link add {BRIDGE_LINK} type veth peer name other-one")  # somebody else's, under a name that a unit wants
    agent.drop("bridge.toml", BRIDGE)
    agent.start("--notify-command", command, settle=False)
    wait_for(lambda: in_short(agent) == [f"problem bridge/{BRIDGE_LINK} Conflict"])
    (one,) = told(agent)
    assert one["host"] == os.uname().nodename
    assert one["text"].startswith(f"bridge/{BRIDGE_LINK} on {one['host']}: Conflict: ")
    wait_for(lambda: remembered(agent))
    agent.kill()
    ip("link add br-two type veth peer name other-two")  # arises while no agent runs
    agent.drop("two.toml", "[bridge.br-two]\n")
    agent.start("--notify-command", command, settle=False)
    wait_for(lambda: len(told(agent)) > 1)
    assert in_short(agent)[1:] == ["problem bridge/br-two Conflict"]
    wait_for(lambda: len(remembered(agent)) == 2)
    agent.kill()
    ip(f"link delete {BRIDGE_LINK}")  # is over while no agent runs
    agent.start("--notify-command", command, settle=False)
    wait_for(lambda: len(told(agent)) > 2)
    assert in_short(agent)[2:] == [f"over bridge/{BRIDGE_LINK} Conflict"]
    wait_for(lambda: 'vmhost_notifications_total{result="delivered"} 1.0' in agent.metrics())


def test_more_than_the_limit_of_a_minute_is_one_notification(agent: AgentProcess) -> None:
    for name in ("br-a", "br-b", "br-c"):
        ip(f"link add {name} type veth peer name other-{name}")
        agent.drop(f"{name}.toml", f"[bridge.{name}]\n")
    agent.start("--notify-command", make_command(agent), "--notify-per-minute", "1", settle=False)
    wait_for(lambda: len(remembered(agent)) == 3)
    (one,) = told(agent)
    assert one["text"].endswith("; and 2 more")
    assert [(more["resource"], more["state"]) for more in one["more"]] == [
        ("bridge/br-b", "problem"),
        ("bridge/br-c", "problem"),
    ]
    assert 'vmhost_notifications_total{result="held_back"} 2.0' in agent.metrics()


def test_a_hold_is_told_and_so_is_its_release(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web"))
    agent.start("--notify-command", make_command(agent))
    agent.vmhost("hold", "web")
    wait_for(lambda: in_short(agent) == ["problem vm/web Held"])
    assert told(agent)[0]["reason"] == "Operator"
    agent.vmhost("release", "web")
    wait_for(lambda: in_short(agent)[1:] == ["over vm/web Held"])


def test_a_question_is_told_and_a_hook_that_fails_is_tried_twice(agent: AgentProcess) -> None:
    command = make_command(agent, "echo the mail is down; exit 3")
    agent.drop("web.toml", bare_vm("web"))
    with webhook() as (url, bodies):
        flags = ("--notify-command", command, "--notify-url", url, "--max-disruption", "0")
        agent.start(*flags)
        (agent.units / "web.toml").unlink()
        wait_for(lambda: bodies)
        one = json.loads(bodies[0])
        assert (one["resource"], one["type"], one["state"]) == ("agent", "ApprovalNeeded", "problem")
        assert f"vmhost approve {one['reason']}" in one["message"]
        wait_for(lambda: 'vmhost_notifications_total{result="failed"} 1.0' in agent.metrics())
        assert in_short(agent) == ["problem agent ApprovalNeeded"] * 2
        wait_for(lambda: 'vmhost_notifications_total{result="delivered"} 1.0' in agent.metrics())
        (condition,) = agent.status()["agent"]["conditions"]
        assert condition["type"] == "NotificationFailed"
        what = f"{command}: exit 3: the mail is down"
        assert condition["message"] == f"{what}; the latest notification reached nobody there"
        assert "told" not in agent.status()["agent"]
        make_command(agent)
        agent.vmhost("approve", one["reason"])
        wait_for(lambda: len(bodies) == 2)
        assert json.loads(bodies[1])["state"] == "over"
        wait_for(lambda: not agent.status()["agent"]["conditions"])
        assert agent.process is not None
        seen = [agent.vmhost("status", "--json"), agent.vmhost("events"), (agent.folder / "agent.log").read_text()]
        seen.append((agent.folder / "state/state.toml").read_text())
        assert not [text for text in seen if SECRET in text]
        assert agent.terminate() == 0


def test_a_crash_loop_is_one_notification_however_often_it_starts_anew(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", 'restart = "always"'))
    agent.start("--notify-command", make_command(agent))
    killed: set[int] = set()

    def kill_again() -> bool:
        pid = agent.vm("web")["pid"]
        if pid and pid not in killed and Path(f"/proc/{pid}").exists():
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        return len(killed) >= 7

    wait_for(kill_again, 120)
    wait_for(lambda: in_short(agent) == ["problem vm/web CrashLoop"])


def test_an_agent_that_ends_takes_a_hanging_command_with_it_and_the_next_one_tells_again(agent: AgentProcess) -> None:
    path = agent.folder / "hanging"
    part = agent.folder / "pid.part"
    path.write_text(f"#!/bin/sh\necho $$ >{part}\nmv {part} {agent.folder}/pid\nsleep 600\n")
    path.chmod(0o755)
    agent.drop("web.toml", bare_vm("web"))
    agent.start("--notify-command", str(path), "--notify-timeout", "5m", "--max-disruption", "0")
    (agent.units / "web.toml").unlink()
    wait_for((agent.folder / "pid").exists)
    assert agent.vmhost("status")  # it is served meanwhile
    pid = int((agent.folder / "pid").read_text())
    assert agent.terminate() == 0
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    assert remembered(agent) == {}
    agent.start("--notify-command", make_command(agent), "--max-disruption", "0")
    wait_for(lambda: in_short(agent) == ["problem agent ApprovalNeeded"])
