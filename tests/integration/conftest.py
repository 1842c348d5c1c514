"""The whole agent, in a network namespace and in folders of a test's own."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent_process import AgentProcess
from tests.integration.uplink_world import quiet
from tests.internet import Box
from tests.netns import ip, network_namespace

BRIDGE = '[bridge.br-test]\naddresses = ["10.77.0.1/24"]\n'
BRIDGE_LINK = "br-test"
GUEST = "10.77.0.10"


@contextlib.contextmanager
def agent_in_a_folder() -> Iterator[AgentProcess]:
    """An agent that is not started yet, in the network namespace of the caller; it ends at the end."""
    with tempfile.TemporaryDirectory(prefix="vmhost-test-", dir="/var/tmp") as folder:
        process = AgentProcess(Path(folder))
        Path(folder).chmod(0o755)
        process.units.mkdir()
        try:
            yield process
        finally:
            process.end()


@pytest.fixture
def agent(request: pytest.FixtureRequest) -> Iterator[AgentProcess]:
    """An agent that is not started yet; its log is shown when the test fails."""
    with network_namespace(), agent_in_a_folder() as process:
        try:
            yield process
        finally:
            process.end()
            log = process.folder / "agent.log"
            if log.exists():
                request.node.add_report_section("teardown", "agent.log", log.read_text(errors="replace")[-20000:])


@pytest.fixture
def provider(agent: AgentProcess) -> Iterator[Box]:
    """The gateway behind the host's only card, `up0`; the host is the test's own namespace."""
    assert agent.process is None
    with Box("up0", addresses=("192.0.2.1/24", "2001:db8::1/64")) as box:
        ip("addr add 192.0.2.5/24 brd + dev up0", "addr add 2001:db8::5/64 dev up0")
        ip("route add default via 192.0.2.1", "route add default via 2001:db8::1")
        quiet()
        yield box


@pytest.fixture
def boot_files(guest_kernel: Path, guest_initrd: Path, agent: AgentProcess) -> str:
    """The lines of a unit that boot the test guest; readable for QEMU's user, wherever the checkout lies."""
    for path in (guest_kernel, guest_initrd):
        target = agent.folder / path.name
        target.write_bytes(path.read_bytes())
        target.chmod(0o644)
    return (
        f'kernel = "{agent.folder / guest_kernel.name}"\ninitrd = "{agent.folder / guest_initrd.name}"\n'
        f'append = "console=ttyS0 quiet init_on_alloc=0 panic=-1 vmhost.nic0={GUEST}/24,10.77.0.1"\n'
    )


def bare_vm(name: str, more: str = "") -> str:
    """A guest without kernel or disk: a real QEMU with its firmware, up in milliseconds."""
    return f'[vm.{name}]\nmemory = "32M"\naccel = "tcg"\nstop-timeout = "1s"\n{more}\n'
