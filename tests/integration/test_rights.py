"""Users of the host at the control socket, each a real process with its own uid and groups."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.cli.client import AgentClient
from agent.core.rights import MEMBERS, Readers, Rights
from agent.runtime.control import serve_control
from tests.agent_process import AgentProcess
from tests.integration.conftest import bare_vm
from tests.integration.fake_agent import FakeAgent
from tests.other_user import NOBODY, Said, open_folder, vmhost_as

GROUP = 54_321
"""Stands for the group `vmhost`: who is a member is known by numbers only."""
GUEST = 1_900_000_007
NAMELESS = 54_322

Words = tuple[str, ...]
READING: tuple[Words, ...] = (
    ("status",),
    ("events",),
    ("plan",),
    ("why", "web"),
    ("show", "web"),
    ("doctor",),
    ("top", "--interval", "1"),
    ("wait", "settled"),
)
CHANGING: tuple[Words, ...] = (("stop", "web", "--no-wait"), ("start", "web", "--no-wait"), ("approve", "ab12"))


@asynccontextmanager
async def served(rights: Rights, *, wide: bool = False) -> AsyncIterator[tuple[Path, FakeAgent]]:
    """A fake agent's run directory. `wide`: the socket's mode keeps nobody out, so only the agent itself judges."""
    fake = FakeAgent()
    with open_folder() as folder:
        async with serve_control(folder / "agent.sock", fake, rights):
            if wide:
                (folder / "agent.sock").chmod(0o666)
            yield folder, fake


async def ask(folder: Path, words: Sequence[str], uid: int = NOBODY, groups: Sequence[int] = ()) -> Said:
    """Ask as another user, while the agent answers in this thread."""
    return await asyncio.to_thread(vmhost_as, ["--run-dir", str(folder), *words], uid, groups)


@pytest.mark.parametrize(
    ("rights", "mode", "gid"),
    [
        (Rights(), 0o600, 0),
        (Rights(group_gid=GROUP), 0o660, GROUP),
        (Rights(group_gid=GROUP, readers=Readers.EVERYONE), 0o666, GROUP),
    ],
)
async def test_the_socket_s_mode_and_group(rights: Rights, mode: int, gid: int) -> None:
    async with served(rights) as (folder, _):
        found = (folder / "agent.sock").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, os.geteuid(), gid)


@pytest.mark.parametrize("words", [*READING, *CHANGING])
async def test_a_member_of_the_group_asks_and_tells(words: Sequence[str]) -> None:
    async with served(Rights(group_gid=GROUP)) as (folder, _):
        assert (await ask(folder, words, groups=[4, GROUP])).code == 0


@pytest.mark.parametrize("words", [*READING, *CHANGING])
async def test_another_user_is_kept_out_by_the_socket_s_mode(words: Sequence[str]) -> None:
    async with served(Rights(group_gid=GROUP)) as (folder, fake):
        said = await ask(folder, words, groups=[4])
        assert said == Said(1, "", f"vmhost: {folder}/agent.sock: permission denied: {MEMBERS}\n")
        assert fake.asked == []


@pytest.mark.parametrize("words", [*READING, *CHANGING])
async def test_another_user_is_refused_by_the_agent_whatever_the_mode(words: Sequence[str]) -> None:
    what = "change anything" if words in CHANGING else "read this"
    async with served(Rights(group_gid=GROUP), wide=True) as (folder, fake):
        said = await ask(folder, words, groups=[4])
        assert said == Said(1, "", f"vmhost: uid {NOBODY} may not {what}: {MEMBERS}\n")
        assert fake.asked == []


async def test_everybody_may_read_where_the_agent_was_told_so_and_nobody_else_change() -> None:
    async with served(Rights(group_gid=GROUP, readers=Readers.EVERYONE)) as (folder, fake):
        for words in READING:
            assert (await ask(folder, words)).code == 0, words
        for words in CHANGING:
            said = await ask(folder, words)
            assert said == Said(1, "", f"vmhost: uid {NOBODY} may not change anything: {MEMBERS}\n")
        assert (await ask(folder, ["status"], uid=GUEST)).err.endswith("guests may not ask the agent\n")
        assert fake.asked == []
        assert await asyncio.to_thread(AgentClient(folder).intent, "stop", "web") == "stop of web noted"


async def test_without_the_group_there_is_only_root() -> None:
    async with served(Rights(), wide=True) as (folder, _):
        said = await ask(folder, ["status"], groups=[GROUP])
        assert said.err == (
            f"vmhost: uid {NOBODY} may not read this: only root may, as there is no group vmhost; use sudo\n"
        )


async def test_a_change_says_who_asked_for_it_by_number_where_there_is_no_name() -> None:
    async with served(Rights(group_gid=GROUP)) as (folder, fake):
        for words in (["stop", "web", "--no-wait"], ["approve", "ab12"], ["down", "--no-wait"]):
            assert (await ask(folder, words, groups=[GROUP])).code == 0
        assert (await ask(folder, ["up", "--no-wait"], uid=NAMELESS, groups=[GROUP])).code == 0
        assert [one[-1] for one in fake.asked] == [*["uid 65534 (nobody)"] * 3, f"uid {NAMELESS}"]


def test_events_say_who_asked(agent: AgentProcess) -> None:
    agent.drop("one.toml", bare_vm("one"))
    agent.start()
    for words in (("stop", "one"), ("start", "one"), ("down",), ("up",)):
        agent.vmhost(*words)
    events = [json.loads(line) for line in agent.vmhost("events", "--json").splitlines()]
    assert [event["message"] for event in events if event["kind"] in {"intent", "down", "up"}] == [
        "stop of one asked for by uid 0 (root)",
        "start of one asked for by uid 0 (root)",
        "all guests are to stop, and none is to start: asked for by uid 0 (root)",
        "guests are to run again: asked for by uid 0 (root)",
    ]


def test_names_that_cannot_be_had_delay_an_answer_by_a_second_and_nothing_else(agent: AgentProcess) -> None:
    silent = agent.folder / "passwd"
    os.mkfifo(silent)  # whoever opens it to read waits for a writer, as for a directory service that hangs
    hide = 'mount --bind "$1" /etc/passwd; shift; exec "$@"'
    command = ["unshare", "--mount", "sh", "-ec", hide, "sh", str(silent), sys.executable, "-m", "agent", *agent.flags]
    agent.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    agent.vmhost("wait", "settled", "--timeout", "60")
    with ThreadPoolExecutor() as several:
        many = range((os.cpu_count() or 1) + 5)  # more than the agent's loop has threads
        assert {one.returncode for one in several.map(lambda _: agent.command("approve", "nothing"), many)} == {1}
    agent.vmhost("down")
    agent.drop("net.toml", "[bridge.br0]\n")
    agent.vmhost("wait", "settled", "--timeout", "60")
    events = [json.loads(line) for line in agent.vmhost("events", "--json").splitlines()]
    told = "all guests are to stop, and none is to start: asked for by uid 0"
    assert [event["message"] for event in events if event["kind"] == "down"] == [told]
    assert agent.terminate() == 0


def test_the_whole_agent_and_another_user(agent: AgentProcess) -> None:
    agent.drop("one.toml", bare_vm("one"))
    agent.start()
    vms, history = agent.run_dir / "vms", agent.folder / "state/history"
    refused = [
        (["history"], history),
        (["undo", "one"], history / "one.toml"),
        (["console", "one"], vms / "one/console.sock"),
        (["vnc", "one"], vms / "one/launch.toml"),
        (["report", "-o", f"{agent.folder}/none.tar.gz"], vms),
        (["init", "two"], agent.units / "two.toml"),
    ]
    for words, path in refused:
        said = vmhost_as([*agent.flags, *words])
        assert said == Said(1, "", f"vmhost: {path}: permission denied; only root may do this, use sudo\n"), words
    for words in (["status"], ["stop", "one"]):
        said = vmhost_as([*agent.flags, *words])
        assert said == Said(1, "", f"vmhost: {agent.run_dir}/agent.sock: permission denied: {MEMBERS}\n"), words
    agent.kill()
    agent.start("--readers", "everyone")
    assert '"name": "one"' in vmhost_as([*agent.flags, "status", "--json"]).out
    assert vmhost_as([*agent.flags, "stop", "one"]).code == 1
    assert agent.vm("one")["state"] == "running"
