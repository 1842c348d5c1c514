"""The virtual lab itself: what its machine is, that tests are run in it and told about, and that it leaves nothing."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.waiting import wait_for
from tests.lab.dispatch import BOOTED
from tests.lab.kernel import TRIALS, lacking
from tests.lab.machine import CommandFailedError
from tests.lab.payload import ROOT
from tests.lab.sent import Sent
from tests.lab.virtual import CARDS, VirtualLab

SAMPLES = Path(__file__).parent / "samples/outcomes.py"
BOOT_AND_WAIT = """
import sys
from pathlib import Path
from tests.lab.image import lab_image
from tests.lab.virtual import CARDS, VirtualLab
VirtualLab(lab_image(), Path(sys.argv[1])).boot()
print("booted", flush=True)
sys.stdin.read()
"""


def test_it_boots_a_systemd_of_which_nothing_failed(virtual_lab: VirtualLab) -> None:
    assert virtual_lab.output("systemctl is-system-running").strip() == "running"
    assert virtual_lab.output("systemctl --failed --no-legend") == ""


def test_its_kernel_has_all_that_a_test_may_ask_for(virtual_lab: VirtualLab) -> None:
    ask = "from tests.lab.kernel import TRIALS, lacking; print(lacking(TRIALS))"
    command = f"cd {shlex.quote(str(ROOT))} && .venv/bin/python -c {shlex.quote(ask)}"
    assert virtual_lab.output(command).strip() == "[]"


def test_it_has_two_cards_that_can_be_pulled_out_and_put_back(virtual_lab: VirtualLab) -> None:
    for number, mac in enumerate(CARDS):
        assert virtual_lab.output(f"cat /sys/class/net/eth{number}/address").strip() == mac
    card = "$(readlink -f /sys/class/net/eth1/device/..)"
    virtual_lab.output(f"echo 1 >{card}/remove")
    assert virtual_lab.try_run("test -e /sys/class/net/eth1").returncode != 0
    virtual_lab.output("echo 1 >/sys/bus/pci/rescan")
    virtual_lab.wait_until(lambda: virtual_lab.try_run("test -e /sys/class/net/eth1").returncode == 0, "the card")
    assert virtual_lab.output("cat /sys/class/net/eth1/address").strip() == CARDS[1]
    virtual_lab.output("ip link set eth0 up; ip link set eth1 up")
    virtual_lab.wait_until(lambda: virtual_lab.output("cat /sys/class/net/eth1/carrier").strip() == "1", "a carrier")
    virtual_lab.output("ip link set eth0 down; ip link set eth1 down")


def test_trying_the_kernel_leaves_nothing_here() -> None:
    def seen() -> tuple[set[str], set[str]]:
        return {str(path) for path in Path("/dev").iterdir()}, {path.name for path in Path("/sys/class/net").iterdir()}

    before = seen()
    lacking.__globals__["has"].cache_clear()
    lacking(TRIALS)
    # Namespaces, and the nodes of links in them, go a moment after their last process.
    wait_for(lambda: not any(now - then for now, then in zip(seen(), before, strict=True)))


def test_a_command_gives_output_errors_and_exit_code(virtual_lab: VirtualLab) -> None:
    done = virtual_lab.try_run("cat; echo trouble >&2; exit 7", b"through\0and\xff through")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"through\0and\xff through", b"trouble\n")
    with pytest.raises(CommandFailedError, match="exit 3: said before"):
        virtual_lab.output("echo said before; exit 3")


def test_much_output_and_a_large_file_come_whole(virtual_lab: VirtualLab) -> None:
    data = os.urandom(1 << 20)
    virtual_lab.write("/var/tmp/deep/er/data", data)
    assert virtual_lab.try_run("cat /var/tmp/deep/er/data; rm -r /var/tmp/deep").stdout == data


def test_what_does_not_end_is_ended_and_others_go_on_meanwhile(virtual_lab: VirtualLab) -> None:
    running = virtual_lab.start("echo begun; exec sleep 3600")
    assert next(running.chunks(60)) == ("out", b"begun\n")
    # It says so before it is the one that is looked for.
    virtual_lab.wait_until(lambda: virtual_lab.try_run("pgrep -fx 'sleep 3600'").returncode == 0, "it to sleep")
    with pytest.raises(TimeoutError, match=r"it did not end in 0 s"):
        running.finish(timeout_s=0)
    virtual_lab.wait_until(lambda: virtual_lab.try_run("pgrep -fx 'sleep 3600'").returncode == 1, "it to be ended")


def test_a_command_ends_though_what_it_left_running_holds_its_output(virtual_lab: VirtualLab) -> None:
    assert virtual_lab.output("sleep 3601 & echo on its way") == "on its way\n"
    virtual_lab.wait_until(lambda: virtual_lab.try_run("pkill -fx 'sleep 3601'").returncode == 0, "it to sleep")


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, virtual_lab: VirtualLab) -> Mapping[str, tuple[pytest.TestReport, ...]]:
    """The samples, sent into the machine: the reports of each by its name."""
    assert virtual_lab.pid
    module = pytest.Module.from_parent(request.session, path=SAMPLES)
    items = list(request.session.genitems(module))
    sent = Sent(request.config, request.config.stash[BOOTED])
    for item in items:
        sent.add(item)
    found = {}
    for item in items:
        reports = tuple(sent.reports(item))
        assert {report.nodeid for report in reports} == {item.nodeid}
        found[item.name] = reports
    return found


def only(reports: tuple[pytest.TestReport, ...], outcome: str) -> pytest.TestReport:
    """The one report of an outcome."""
    (found,) = [report for report in reports if report.outcome == outcome]
    return found


@pytest.mark.parametrize("name", ["test_passes", "test_passes_with[a b]", r"test_passes_with[\xe4[1]]"])
def test_what_passes_inside_passes(name: str, outcomes: Mapping[str, tuple[pytest.TestReport, ...]]) -> None:
    assert [(report.when, report.outcome) for report in outcomes[name]] == [
        ("setup", "passed"),
        ("call", "passed"),
        ("teardown", "passed"),
    ]


def test_a_failure_inside_is_told_with_its_text(outcomes: Mapping[str, tuple[pytest.TestReport, ...]]) -> None:
    failed = only(outcomes["test_fails"], "failed")
    assert failed.when == "call"
    assert "told in these words" in failed.longreprtext
    assert "tests/lab/samples/outcomes.py:" in failed.longreprtext
    assert "what it printed" in failed.capstdout


def test_a_skip_inside_is_told_with_its_reason(outcomes: Mapping[str, tuple[pytest.TestReport, ...]]) -> None:
    skipped = only(outcomes["test_skips"], "skipped")
    assert isinstance(skipped.longrepr, tuple)  # what pytest's summary reads
    assert skipped.longrepr[2] == "Skipped: told as the reason"


def test_an_error_before_a_test_is_told(outcomes: Mapping[str, tuple[pytest.TestReport, ...]]) -> None:
    failed = only(outcomes["test_cannot_be_set_up"], "failed")
    assert failed.when == "setup"
    assert "nothing to build upon" in failed.longreprtext


@pytest.mark.parametrize("name", ["test_ends_pytest", "test_never_begins"])
def test_a_pytest_that_ends_early_fails_what_it_owes(
    name: str, outcomes: Mapping[str, tuple[pytest.TestReport, ...]]
) -> None:
    failed = only(outcomes[name], "failed")
    assert "pytest ended in the virtual lab before this test did" in failed.longreprtext


@pytest.mark.usefixtures("virtual_lab")  # for the image; and it must stay while another machine dies
def test_the_machine_dies_with_who_booted_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BOOT_AND_WAIT, str(tmp_path)]
    who = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)
    try:
        wait_for((tmp_path / "agent.sock").exists, 120)
        children = Path(f"/proc/{who.pid}/task/{who.pid}/children").read_text().split()
        (qemu,) = [int(pid) for pid in children if "qemu-system" in Path(f"/proc/{pid}/cmdline").read_text()]
        ended = os.pidfd_open(qemu)
        try:
            who.send_signal(signal.SIGKILL)
            assert select.select([ended], [], [], 60)[0] == [ended]
        finally:
            os.close(ended)
    finally:
        who.kill()
        who.communicate()
