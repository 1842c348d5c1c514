"""What an operator asks of a guest beside start and stop, with real QEMUs, and over restarts of the agent."""

from __future__ import annotations

import os
import signal

from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST, bare_vm
from tests.integration.monitor import on_monitor, run_state
from tests.integration.test_edits import conditions, pids
from tests.integration.test_guest import BOOT_S
from tests.integration.waiting import ip_links, wait_for
from tests.netns import ip
from tests.probe import answers_within

NIC = '[vm.web.nic.lan]\nbridge = "br-test"\n'


def state(agent: AgentProcess) -> str:
    return str(agent.vm("web")["state"])


def test_a_pause_holds_over_an_agents_restart_and_is_no_deviation(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    pid = pids(agent)["web"]
    assert agent.vmhost("pause", "web") == "web is paused\n"
    assert (run_state(agent), state(agent)) == ("paused", "paused")
    agent.vmhost("wait", "settled", "--timeout", "60")
    agent.vmhost("wait", "in-sync", "--timeout", "60")
    agent.kill()
    agent.start()
    assert (run_state(agent), state(agent), pids(agent)["web"]) == ("paused", "paused", pid)
    on_monitor(agent, "cont")
    wait_for(lambda: run_state(agent) == "paused")
    assert "vmhost resume web" in conditions(agent, "vms", "web")["Paused"]["message"]
    refused = agent.command("reset", "web")
    assert (refused.returncode, refused.stderr) == (1, "vmhost: web is paused; `vmhost resume web` first\n")
    assert agent.vmhost("resume", "web") == "web is running\n"
    assert (run_state(agent), pids(agent)["web"]) == ("running", pid)


def test_a_resume_lets_a_guest_go_on_that_somebody_paused_and_is_answered_once(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web"))
    agent.start()
    for _ in range(2):
        on_monitor(agent, "stop")
        wait_for(lambda: "Paused" in conditions(agent, "vms", "web"))
        agent.vmhost("wait", "settled")
        assert run_state(agent) == "paused"
        agent.vmhost("resume", "web")
        assert run_state(agent) == "running"
        agent.kill()
        agent.start()


def test_a_guest_that_is_started_anew_while_it_is_paused_waits_at_its_first_instruction(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", 'restart = "always"'))
    agent.start()
    agent.vmhost("pause", "web")
    pid = pids(agent)["web"]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pids(agent)["web"] not in (pid, None))
    agent.vmhost("wait", "paused", "web", "--timeout", "60")
    assert (run_state(agent), state(agent)) == ("prelaunch", "paused")
    agent.vmhost("start", "web")
    assert run_state(agent) == "running"
    agent.vmhost("pause", "web")
    agent.vmhost("restart", "web")
    assert (run_state(agent), state(agent)) == ("running", "running")


def test_a_paused_guest_that_is_stopped_shuts_itself_down(agent: AgentProcess, boot_files: str) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", f'[vm.web]\nmemory = "128M"\naccel = "tcg"\nstop-timeout = "1h"\n{boot_files}{NIC}')
    agent.start()
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    agent.vmhost("pause", "web")
    agent.vmhost("stop", "web", "--timeout", "110")
    refused = agent.command("resume", "web")
    assert (refused.returncode, refused.stderr) == (1, "vmhost: web does not run; `vmhost start web` starts it\n")


def test_a_held_guest_is_left_alone_until_it_is_released(agent: AgentProcess) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", bare_vm("web", f'restart = "always"\n{NIC}'))
    agent.start()
    pid = pids(agent)["web"]
    assert pid is not None
    assert agent.vmhost("hold", "web", "--reason", "looking\nat it") == "web is held\n"
    message = conditions(agent, "vms", "web")["Held"]["message"]
    assert message.startswith("uid 0 holds it since 20")
    assert "(looking\\nat it): the agent leaves it" in message
    assert state(agent) == "held"
    wait_for(lambda: 'vmhost_vm_held{reason="Operator",vm="web"} 1.0' in agent.metrics())
    for verb in ("stop", "start", "restart", "reset", "pause", "resume"):
        refused = agent.command(verb, "web")
        assert (refused.returncode, refused.stderr) == (1, "vmhost: uid 0 holds web; `vmhost release web` first\n")

    ip("link set web-lan nomaster", "link set web-lan down")
    agent.vmhost("wait", "settled")
    (agent.units / "web.toml").unlink()
    (agent.units / "net.toml").unlink()
    wait_for(lambda: agent.status()["units"] == [])
    agent.kill()
    agent.start()
    assert (pids(agent)["web"], {"web-lan", "br-test"} <= ip_links()) == (pid, True)
    ip("link del web-lan")
    agent.vmhost("wait", "settled")
    assert "web-lan" not in ip_links()

    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", bare_vm("web", f'restart = "always"\n{NIC}'))
    wait_for(lambda: len(agent.status()["units"]) == 2)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pids(agent)["web"] is None)
    agent.vmhost("wait", "settled")
    assert (pids(agent)["web"], state(agent)) == (None, "held")
    assert "it ended once: crash after" in agent.vmhost("why", "web")
    assert "`vmhost release web` gives it back" in agent.vmhost("why", "web")

    assert agent.vmhost("release", "web") == "web is released\n"
    agent.vmhost("wait", "in-sync", "--timeout", "60")
    assert state(agent) == "running"
    assert "web-lan" in ip_links()
    wait_for(lambda: "vmhost_vm_held{" not in agent.metrics())
    refused = agent.command("release", "web")
    assert (refused.returncode, refused.stderr) == (1, "vmhost: nobody holds web\n")


def test_a_release_finds_what_was_lost_meanwhile_and_mends_it_beneath_the_guest(agent: AgentProcess) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", bare_vm("web", NIC))
    agent.start()
    pid = pids(agent)["web"]
    agent.vmhost("hold", "web")
    ip("link del web-lan")
    agent.vmhost("wait", "settled")
    assert "web-lan" not in ip_links()
    agent.vmhost("release", "web")
    agent.vmhost("wait", "in-sync", "--timeout", "60")
    assert (pids(agent)["web"], agent.vm("web")["nics"][0]["attached"]) == (pid, True)
