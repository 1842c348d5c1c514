"""An agent that is killed for real at each step of a move, as `strace` sees it take that step."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.agent_process import AgentProcess
from tests.integration.uplink_world import CARRIED, UNIT, are_again, at_home, conditions, quiet, settled, state, tables
from tests.internet import Box
from tests.netns import ip

STEPS = (
    ("its journal is written", re.compile(r"rename.*moves/br0\.move")),
    ("the card is in the bridge", re.compile("RTM_NEWLINK")),
    ("the bridge has the addresses and routes", re.compile("RTM_DELROUTE")),
    ("its journal says so", re.compile(r"pwrite64.*moved")),
)
"""What an agent does in a move, in this order, and what the kernel is asked for then."""

SILENT = 'probe = ["192.0.2.200"]\nprobe-timeout = "60s"\n'


@contextmanager
def traced(agent: AgentProcess) -> Iterator[Iterator[str]]:
    """The calls of an agent that runs, one a line, each as soon as it has been made."""
    assert agent.process is not None
    words = ["strace", "-z", "-f", "-p", str(agent.process.pid), "-e", "trace=rename,pwrite64,sendto"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        try:
            assert "attached" in strace.stderr.readline()
            yield iter(strace.stderr.readline, "")
        finally:
            strace.terminate()


@pytest.mark.parametrize("taken", range(1, len(STEPS) + 1), ids=[name.replace(" ", "-") for name, _ in STEPS])
def test_the_next_agent_puts_back_whatever_step_was_the_last(agent: AgentProcess, taken: int) -> None:
    with Box("up0", addresses=("192.0.2.1/24", "2001:db8::1/64")):
        ip(*CARRIED)
        quiet()
        agent.drop("net.toml", "[bridge.br0]\n")
        agent.start()
        settled(agent)
        before = tables("br0")
        with traced(agent) as calls:
            agent.drop("net.toml", UNIT + SILENT)
            for _, call in STEPS[:taken]:
                assert next((line for line in calls if call.search(line)), None), "the agent ended before"
            agent.kill()
        agent.start()
        assert (state(agent), at_home()) == ("put-back", True)
        assert "the agent was lost" in conditions(agent)["MovePutBack"]
        are_again(before, "br0")
