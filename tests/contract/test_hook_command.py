"""Real commands that are told of notifications, also ones that misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from agent.core.errors import HookError
from agent.host.hook_command import OUTPUT_MAX_BYTES, CommandHook
from tests.integration.waiting import wait_for

BODY = json.dumps({"message": "x" * 200_000}).encode()


def hook(folder: Path, script: str, timeout_s: float = 60.0) -> CommandHook:
    path = folder / "hook"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return CommandHook(path, timeout_s)


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


async def test_it_is_told_on_its_standard_input_and_by_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/secret")
    tell = f"cat >{tmp_path}/body; env >{tmp_path}/env; ps -o pgid=,sid=,ni= -p $$ >{tmp_path}/ps"
    calm = "until ps -o ni= -p $$ | grep -qx ' *0'; do sleep 0.05; done"  # its nice value is set when it has begun
    script = f'{calm}; {tell}; echo "done\n"; pwd'
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, -5)  # of this thread, and of those that it starts: as the agent's is
    try:
        answer = await hook(tmp_path, script).send(BODY, {"VMHOST_TYPE": "Held", "VMHOST_TEXT": "a b'\"$(c)"})
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)
    assert answer == "done\\n\\n/"
    assert (tmp_path / "body").read_bytes() == BODY
    variables = dict(line.partition("=")[::2] for line in (tmp_path / "env").read_text().splitlines())
    assert {name for name in variables if name not in {"_", "PWD", "OLDPWD", "SHLVL"}} == {
        "PATH",
        "LC_ALL",
        "VMHOST_TYPE",
        "VMHOST_TEXT",
    }
    assert variables["VMHOST_TEXT"] == "a b'\"$(c)"
    group, session, nice = map(int, (tmp_path / "ps").read_text().split())
    assert group == session != os.getsid(0)
    assert nice == 0


async def test_one_that_reads_nothing_and_one_that_says_too_much(tmp_path: Path) -> None:
    assert await hook(tmp_path, "exit 0").send(BODY, {}) == ""
    answer = await hook(tmp_path, "yes | head -c 3000000").send(BODY, {})
    assert 0 < len(answer.replace("\\n", "\n")) <= OUTPUT_MAX_BYTES


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo no mail; exit 3", "exit 3: no mail"),
        ("exit 1", "exit 1"),
        ("kill -9 $$", "ended by SIGKILL"),
    ],
)
async def test_one_that_fails_is_told_in_a_line(tmp_path: Path, script: str, problem: str) -> None:
    with pytest.raises(HookError) as caught:
        await hook(tmp_path, script).send(b"{}", {})
    assert str(caught.value) == f"{tmp_path}/hook: {problem}"


async def test_what_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    script = f"sleep 600 & echo $! >{tmp_path}/child; trap '' TERM; echo begun; sleep 600; sleep 600"
    began_s = time.monotonic()
    with pytest.raises(HookError) as caught:
        await hook(tmp_path, script, timeout_s=10.0).send(b"{}", {})
    assert str(caught.value) == f"{tmp_path}/hook: killed, it took longer than 10 s: begun"
    assert time.monotonic() - began_s < 300
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not is_alive(child))


async def test_what_it_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    answer = await hook(tmp_path, f"sleep 600 & echo $! >{tmp_path}/child; echo told").send(b"{}", {})
    assert answer == "told"
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not is_alive(child))


async def test_when_the_agent_ends_the_command_does_and_others_go_on_meanwhile(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    os.mkfifo(tmp_path / "begun")
    telling = hook(tmp_path, f"echo $$ >{tmp_path}/begun; sleep 600").send(b"{}", {})
    task = asyncio.create_task(telling)
    pid = int(await asyncio.to_thread((tmp_path / "begun").read_text))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_alive(pid)
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_what_cannot_be_run_is_told_beforehand_and_then(tmp_path: Path) -> None:
    missing = CommandHook(tmp_path / "none", 1.0)
    assert missing.problem() == f"--notify-command {tmp_path}/none: there is no such file; put it there"
    with pytest.raises(HookError, match="cannot be run: no such file or directory"):
        await missing.send(b"", {})
    text = hook(tmp_path, "exit 0")
    assert text.problem() == ""
    (tmp_path / "hook").write_text("no program")
    with pytest.raises(HookError, match="cannot be run: exec format error"):
        await text.send(b"", {})
    (tmp_path / "hook").chmod(0o644)
    assert text.problem() == f"--notify-command {tmp_path}/hook: it may not be run; `chmod 755` it"
    with pytest.raises(HookError, match="cannot be run: permission denied"):
        await text.send(b"", {})
