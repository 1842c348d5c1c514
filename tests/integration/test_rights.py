"""Users of the host at the control socket, each a real process with its own uid and groups."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Sequence
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

Words = tuple[str, ...]
READING: tuple[Words, ...] = (("status",), ("events",), ("plan",), ("why", "web"), ("show", "web"), ("wait", "settled"))
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
