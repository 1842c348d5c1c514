"""The service in a real systemd: whatever happens to the agent, each guest stays in the QEMU that it is in."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.core.memory import VERSION
from tests.lab.service import UNIT, Installed

TAP = "web-lan"
WATCHDOG_S = 10
LATER = VERSION + 1

pytestmark = pytest.mark.timeout(600)  # the first one boots the lab and its guests


def agent_pid(installed: Installed) -> int:
    return int(installed.property("MainPID"))


@contextmanager
def same_guests(installed: Installed) -> Iterator[None]:
    """Whatever happens inside: the same QEMU for each guest, the same boot of the one that can be asked."""
    pids, boot = installed.pids(), installed.wait_for_guest()
    assert set(pids) == {"db", "web"}
    yield
    installed.wait_settled()
    assert installed.pids() == pids
    assert installed.wait_for_guest() == boot


@contextmanager
def another_agent(installed: Installed, timeout_s: float = 30.0) -> Iterator[int]:
    """Inside, what makes systemd start another agent; at the end that one is ready."""
    before = agent_pid(installed)
    yield before
    installed.lab.wait_until(
        lambda: installed.property("MainPID") not in {"0", str(before)}, "another agent to start", timeout_s
    )
    installed.lab.wait_until(lambda: installed.property("SubState") == "running", "it to be ready", timeout_s)


@contextmanager
def drop_in(installed: Installed, text: str) -> Iterator[None]:
    """Another setting of the unit, for a while."""
    path = f"/run/systemd/system/{UNIT}.d/test.conf"
    installed.lab.write(path, text.encode())
    try:
        installed.lab.output(f"systemctl daemon-reload && systemctl restart {UNIT}")
        yield
    finally:
        installed.lab.output(f"rm {path} && systemctl daemon-reload && systemctl restart {UNIT}")


def restart(installed: Installed) -> None:
    installed.lab.output(f"systemctl restart {UNIT}")


def kill(installed: Installed) -> None:
    """Three times: no agent takes over less than the one before."""
    for _ in range(3):
        with another_agent(installed) as pid:
            installed.lab.output(f"kill -9 {pid}")


@pytest.fixture
def newer_package(package: Path, tmp_path: Path) -> Path:
    """The same package with a higher version."""
    tree, newer = tmp_path / "tree", tmp_path / "newer.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 1:"))
    build = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(newer)]
    subprocess.run(build, check=True, capture_output=True)
    return newer


def test_installed_it_serves_and_says_how_it_goes(installed: Installed) -> None:
    installed.wait_settled()
    assert installed.property("ActiveState") == "active"
    assert installed.property("Type") == "notify"
    assert installed.property("UnitFileState") == "enabled"
    lab = installed.lab
    lab.wait_until(
        lambda: installed.property("StatusText") == "2 of 2 guests running, 1 bridge; settled", "the status line"
    )
    assert installed.property("NFileDescriptorStore") == "2"  # the taps of both guests
    modes = lab.output("stat --format=%a:%U:%G /run/vmhost /var/lib/vmhost /etc/vmhost.d").split()
    assert modes == ["711:root:root", "700:root:root", "755:root:root"]
    assert lab.output("getent group vmhost").startswith("vmhost:")


def stop_and_start(installed: Installed) -> None:
    """What was kept is dropped by systemd 252 when the unit stops: the next agent fetches it from QEMU."""
    installed.lab.output(f"systemctl stop {UNIT}")
    installed.lab.output(f"systemctl start {UNIT}")


@pytest.fixture
def stand_still(installed: Installed) -> Iterator[Callable[[Installed], None]]:
    """Stop the agent's process, as one that hangs: the watchdog ends it, and none that works."""

    def stop(installed: Installed) -> None:
        restarts, working = int(installed.property("NRestarts")), agent_pid(installed)
        installed.lab.output(f"sleep {2 * WATCHDOG_S + 1}", timeout_s=120)
        assert agent_pid(installed) == working
        with another_agent(installed, 90) as pid:
            os.kill(installed.lab.host_pid(pid), signal.SIGSTOP)
        assert int(installed.property("NRestarts")) == restarts + 1
        assert installed.property("Result") == "success"

    with drop_in(installed, f"[Service]\nWatchdogSec={WATCHDOG_S}s\n"):
        yield stop


@pytest.fixture
def upgrade(newer_package: Path) -> Callable[[Installed], None]:
    """Install a newer version of the package."""

    def install(installed: Installed) -> None:
        before = agent_pid(installed)
        assert "Setting up vmhost (1:" in installed.install(newer_package)
        assert agent_pid(installed) not in {0, before}

    return install


@pytest.fixture(
    params=[restart, kill, stop_and_start, "stand_still", "upgrade"], ids=lambda end: getattr(end, "__name__", end)
)
def end(request: pytest.FixtureRequest) -> Callable[[Installed], None]:
    """A way in which one agent makes room for another, which serves when it is over."""
    found: Callable[[Installed], None] = (
        request.getfixturevalue(request.param) if isinstance(request.param, str) else request.param
    )
    return found


def test_guests_outlive_their_agent_and_a_tap_deleted_then_is_armed_again(
    installed: Installed, end: Callable[[Installed], None]
) -> None:
    with same_guests(installed):
        end(installed)
        installed.lab.output(f"ip link delete {TAP}")
    kinds = [event["kind"] for event in installed.events()]
    assert [kind for kind in kinds if kind in {"arm-tap", "replug-nic"}] == ["arm-tap"]  # a guest notices the other one
    assert installed.property("NFileDescriptorStore") == "2"


def test_kept_descriptors_need_no_rights_over_qemu(installed: Installed) -> None:
    with (
        drop_in(installed, "[Service]\nCapabilityBoundingSet=~CAP_SYS_PTRACE\n"),
        same_guests(installed),
    ):
        kill(installed)
        installed.lab.output(f"ip link delete {TAP}")
        installed.wait_settled()
        assert "replug-nic" not in [event["kind"] for event in installed.events()]
        assert installed.property("NFileDescriptorStore") == "2"


def test_a_reload_reads_the_units_and_restarts_nobody(installed: Installed) -> None:
    with same_guests(installed):
        agent = agent_pid(installed)
        seen = len(installed.events())
        installed.lab.output(f"systemctl reload {UNIT}")
        installed.lab.wait_until(
            lambda: "reloaded" in [event["kind"] for event in installed.events()[seen:]], "the reload"
        )
        installed.lab.wait_until(lambda: installed.property("SubState") == "running", "the end of the reload")
        assert agent_pid(installed) == agent


def test_a_bad_unit_file_is_told_and_fails_nothing(installed: Installed) -> None:
    with same_guests(installed):
        installed.lab.write("/etc/vmhost.d/bad.toml", b"[vm.bad\n")
        try:
            restart(installed)
            installed.lab.wait_until(
                lambda: "1 unit file with mistakes" in installed.property("StatusText"), "the status line"
            )
            assert installed.property("ActiveState") == "active"
        finally:
            installed.lab.output("rm /etc/vmhost.d/bad.toml")


def test_metrics_that_the_service_keeps_others_from_are_told_until_they_are_let_in(installed: Installed) -> None:
    lab, folder = installed.lab, "/etc/systemd/system/vmhost-agent.service.d"
    lab.output(f"mkdir -p {folder}")

    def conditions() -> dict[str, str]:
        return {one["type"]: one["message"] for one in installed.status()["agent"]["conditions"]}

    with same_guests(installed):
        try:
            lab.write(
                f"{folder}/listen.conf",
                b"[Service]\nExecStart=\nExecStart=/usr/bin/vmhost-agent --listen 0.0.0.0:9177\n",
            )
            lab.output(f"systemctl daemon-reload; systemctl restart {UNIT}")
            lab.wait_until(lambda: conditions() != {}, "the condition")
            assert conditions() == {
                "MetricsFiltered": "metrics on 0.0.0.0:9177 are not to be reached from elsewhere: IPAddressDeny= of "
                "vmhost-agent.service lets only this host in; `systemctl edit vmhost-agent`, [Service], "
                "IPAddressAllow=NETWORK/BITS, and `systemctl restart vmhost-agent` open it"
            }
            assert "IPAddressDeny= of vmhost-agent" in lab.output(f"journalctl --no-pager -u {UNIT} -n 50")
            lab.write(f"{folder}/open.conf", b"[Service]\nIPAddressAllow=192.0.2.0/24\n")
            lab.output(f"systemctl daemon-reload; systemctl restart {UNIT}")
            lab.wait_until(lambda: conditions() != {}, "the condition")
            assert set(conditions()) == {"MetricsExposed"}
        finally:
            lab.output(f"rm -r {folder}; systemctl daemon-reload; systemctl restart {UNIT}")


def test_what_no_try_can_mend_is_not_tried_again_and_stays_told(installed: Installed) -> None:
    lab, state = installed.lab, "/var/lib/vmhost/state.toml"
    with same_guests(installed):
        lab.output(f"systemctl stop {UNIT}; sed -i 's/^version = {VERSION}$/version = {LATER}/' {state}")
        try:
            assert "failed" in lab.output(f"systemctl start {UNIT} 2>&1", check=False)
            assert installed.property("ExecMainStatus") == str(os.EX_CONFIG)
            assert installed.property("ActiveState") == "failed"
            restarts = installed.property("NRestarts")
            told = lab.output(f"systemctl status --no-pager --full {UNIT}", check=False)
            assert (
                f'Status: "{state}: written by a later vmhost (state version {LATER}, this one knows {VERSION})' in told
            )
        finally:
            lab.output(f"sed -i 's/^version = {LATER}$/version = {VERSION - 1}/' {state}; systemctl start {UNIT}")
        assert installed.property("NRestarts") == restarts == "0"
        assert lab.output(f"grep -h ^version {state}.v{VERSION - 1}") == f"version = {VERSION - 1}\n"  # it was migrated


def test_removed_the_guests_run_on_and_whoever_removes_it_is_told(installed: Installed, package: Path) -> None:
    with same_guests(installed):
        said = installed.lab.output("dpkg --remove vmhost 2>&1", timeout_s=60)
        assert "vmhost: guests run on, without anybody who heals them: db web" in said
        assert installed.lab.output("test -e /var/lib/vmhost/state.toml; echo $?") == "0\n"
        installed.install(package)


def test_purged_the_memory_goes_and_units_and_guests_stay(installed: Installed, package: Path) -> None:
    with same_guests(installed):
        installed.lab.write("/var/lib/vmhost/firmware/of-a-guest.fd", b"variables")
        installed.lab.output("dpkg --purge vmhost", timeout_s=60)
        assert installed.lab.output("ls -d /opt/vmhost", check=False) == ""
        assert installed.lab.output("find /var/lib/vmhost -type f") == "/var/lib/vmhost/firmware/of-a-guest.fd\n"
        assert installed.lab.output("ls /etc/vmhost.d").split() == ["db.toml", "network.toml", "web.toml"]
        installed.install(package)
