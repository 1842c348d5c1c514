"""The `vmhost` command as a program: what it writes and its exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "agent.cli.main")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run directory in which a made-up agent answers."""
    folder = tmp_path_factory.mktemp("run")
    server = (sys.executable, "-m", "tests.integration.fake_agent", str(folder))
    with subprocess.Popen(server, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield folder
        finally:
            process.stdin.close()


def told(stderr: str) -> str:
    """What the command says beside that it waits for long, which is the machine's doing."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.startswith("waiting for "))


def vmhost(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


PLAIN_STATUS = """\
settled; vmhost 0.1.0, pid 7, since 2026-01-01T00:00:00Z

BRIDGE  STATE  ADDRESSES    PORTS
br-lan  ok     10.0.0.1/24  web-lan

VM   STATE    PID  RESTARTS  NICS        PENDING
db   waiting  -    0         -           -
web  running  42   0         lan:br-lan  -

vm/db: vm/db/disk/root: DiskMissing: /d/db.qcow2 is gone; put it back (since 2026-01-01T00:00:05Z)
"""


def test_status_is_plain_aligned_text_in_a_pipe(run_dir: Path) -> None:
    done = vmhost("status", "--run-dir", run_dir)
    assert (done.returncode, done.stdout, done.stderr) == (0, PLAIN_STATUS, "")


def test_status_on_a_terminal_is_drawn(run_dir: Path) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        command = [*COMMAND, "status", "--run-dir", str(run_dir)]
        done = subprocess.run(
            command, cwd=ROOT, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}, check=False
        )
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal's way to say that nobody writes there any more
            while part := terminal.read(65536):
                shown += part
    assert done.returncode == 0
    assert b"\x1b[32mrunning" in shown


@pytest.mark.parametrize("before", [True, False])
def test_flags_stand_on_either_side(run_dir: Path, before: bool) -> None:
    flags = ("--run-dir", run_dir, "--json")
    done = vmhost(*flags, "status") if before else vmhost("status", *flags)
    assert done.returncode == 0
    assert {vm["name"] for vm in json.loads(done.stdout)["vms"]} == {"db", "web"}


def test_status_of_one(run_dir: Path) -> None:
    found = json.loads(vmhost("status", "web", "--json", "--run-dir", run_dir).stdout)
    assert ([vm["name"] for vm in found["vms"]], found["bridges"]) == (["web"], [])
    done = vmhost("status", "wbe", "--run-dir", run_dir)
    assert (done.returncode, done.stderr) == (
        1,
        'vmhost: no guest and no bridge is named "wbe"; did you mean "web"?\n',
    )


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (["wait"], 0, "settled\n", ""),
        (["wait", "running", "web"], 0, "vm web is running\n", ""),
        (["wait", "running", "db", "--timeout", "0.1"], 1, "", "vmhost: vm db is waiting: DiskMissing\n"),
        (["start", "web"], 0, "vm web is running\n", ""),
        (["stop", "db", "--no-wait"], 0, "stop of db noted\n", ""),
        (["stop", "db", "--timeout", "0.1"], 1, "", "vmhost: vm db is waiting: DiskMissing\n"),
        (["restart", "wbe"], 1, "", 'vmhost: no guest is named "wbe"; did you mean "web"?\n'),
        (["approve", "ab12"], 0, "3 guests may stop\n", ""),
        (["approve", "x"], 1, "", "vmhost: nothing asks for an approval x; `vmhost status` shows what does\n"),
    ],
)
def test_exit_codes_with_an_agent(run_dir: Path, arguments: list[str], code: int, out: str, err: str) -> None:
    done = vmhost(*arguments, "--run-dir", run_dir)
    assert (done.returncode, done.stdout, told(done.stderr)) == (code, out, err)


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["events"], ["events", "-f"], ["wait", "--timeout", "0.1"], ["start", "web"], ["approve", "x"]],
)
def test_three_without_an_agent(tmp_path: Path, arguments: list[str]) -> None:
    done = vmhost(*arguments, "--run-dir", tmp_path)
    why = f"vmhost: no agent answers at {tmp_path}/agent.sock; start vmhost-agent, or name its --run-dir\n"
    assert (done.returncode, done.stdout, told(done.stderr)) == (3, "", why)


@pytest.mark.parametrize(
    ("arguments", "last_line"),
    [
        ([], ""),
        (["burn"], ""),
        (["start"], "vmhost start: error: the following arguments are required: NAME"),
        (["wait", "running"], "vmhost: error: wait running: which guest? vmhost wait running NAME"),
        (["wait", "settled", "web"], "vmhost: error: wait settled is about the whole host and takes no name"),
        (["wait", "--timeout", "soon"], 'vmhost wait: error: argument --timeout: "soon" is no number of seconds'),
        (["wait", "--timeout", "nan"], 'vmhost wait: error: argument --timeout: "nan" is no number of seconds'),
    ],
)
def test_two_on_wrong_usage(arguments: list[str], last_line: str) -> None:
    done = vmhost(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: vmhost" in done.stderr
    assert done.stderr.endswith(f"{last_line}\n")


def test_events_are_lines(run_dir: Path) -> None:
    done = vmhost("events", "--run-dir", run_dir)
    (line,) = done.stdout.splitlines()
    assert line.endswith("+00:00  vm/web  launched web")
    assert json.loads(vmhost("events", "--json", "--run-dir", run_dir).stdout)["fields"] == {"pid": 42}


def test_ctrl_c_is_quiet(run_dir: Path) -> None:
    command = [*COMMAND, "events", "-f", "--run-dir", str(run_dir)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "launched web" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


def test_a_reader_that_leaves_is_no_error(run_dir: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [*COMMAND, "status", "--json", "--run-dir", str(run_dir)]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_long_wait_says_once_what_it_waits_for(run_dir: Path) -> None:
    done = vmhost("wait", "running", "db", "--timeout", "6", "--run-dir", run_dir)
    reason = "vm/db/disk/root: DiskMissing: /d/db.qcow2 is gone; put it back (since 2026-01-01T00:00:05Z)"
    assert done.stderr.splitlines() == [
        f"waiting for vm db to be running: {reason}",
        "vmhost: vm db is waiting: DiskMissing",
    ]


def test_only_what_is_needed_is_imported() -> None:
    code = "import sys, agent.cli.main; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"aiohttp", "asyncio", "rich", "pydantic", "pyroute2", "structlog"} & set(done.stdout.split())


PLAN = """\
WHEN  DISRUPTION  RESOURCE       ACTION
now   none        bridge/br-lan  make bridge br-lan
1 action; disruption: none that a guest notices
"""


def test_a_plan_is_a_table_and_a_sum(run_dir: Path) -> None:
    done = vmhost("plan", "--run-dir", run_dir)
    assert (done.returncode, done.stdout, done.stderr) == (0, PLAN, "")
    assert json.loads(vmhost("plan", "--json", "--run-dir", run_dir).stdout)["complete"] is True


def test_a_plan_of_what_is_no_unit_is_wrong_usage(run_dir: Path, tmp_path: Path) -> None:
    for path, problem in (
        (tmp_path / "none.toml", "cannot be read: it does not exist"),
        (tmp_path / "web.yaml", "no unit by its name"),
    ):
        done = vmhost("plan", path, "--run-dir", run_dir)
        assert (done.returncode, done.stdout) == (2, "")
        assert problem in done.stderr
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.toml").write_text("")
    done = vmhost("plan", tmp_path / "a", tmp_path / "b" / "x.toml", "--run-dir", run_dir)
    assert (done.returncode, "x.toml is named twice" in done.stderr) == (2, True)


def test_reasons_and_settings_are_lines(run_dir: Path) -> None:
    assert vmhost("why", "web", "--run-dir", run_dir).stdout == "vm/web\n  next    nothing\n"
    shown = vmhost("show", "web", "--run-dir", run_dir).stdout.splitlines()
    assert shown[:2] == ["vm/web", "no unit file names it"]
    assert shown[-1] == "nothing of it runs"
    assert vmhost("why", "wbe", "--run-dir", run_dir).returncode == 1
    assert vmhost("why", "web", "--run-dir", run_dir / "none").returncode == 3
