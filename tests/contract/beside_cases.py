"""What holds of both ways to run a command beside the agent, as cases that a test runs here and in a lab's systemd.

`python beside_cases.py CASE FOLDER` runs one as a service's way; it needs the agent's own packages and nothing else.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from agent.core.errors import ActionError, PermanentError, TransientError
from agent.host.systemd import ServiceManager
from agent.runtime.beside import Beside, Ran, Task, run_beside
from agent.runtime.starts import ChildStarts, Starts, UnitStarts

NET_RAW, NET_ADMIN = 1 << 13, 1 << 12


async def run(way: Beside, *command: str, capabilities: Sequence[str] = (), deadline_s: float = 60.0) -> Ran:
    return await run_beside(way, Task("beside-case", command, capabilities, deadline_s))


async def what_it_writes_and_its_code_are_told(way: Beside) -> None:
    """Output and errors apart; a command that ends at once, and more than a pipe holds."""
    assert await run(way, "true") == Ran(0, "", "")
    assert await run(way, "sh", "-c", "echo one; echo two >&2; exit 3") == Ran(3, "one\n", "two\n")
    assert len((await run(way, "head", "-c", "300000", "/dev/zero")).output) == 300_000
    assert (await run(way, "cat")).output == ""  # its input is empty


async def an_end_in_the_moment_of_the_start_is_told(way: Beside) -> None:
    """Of many at once, so that who starts them hears of some ends before it hears that they were executed."""
    for _ in range(5):
        ran = await asyncio.gather(*(run(way, "sh", "-c", f"exit {number}") for number in range(20)))
        assert [one.code for one in ran] == list(range(20))


async def it_has_the_rights_that_are_named(way: Beside) -> None:
    """Root's user with these capabilities, none to be got."""
    for names, bits in ((["net_raw"], NET_RAW), (["net_admin", "net_raw"], NET_ADMIN | NET_RAW)):
        ran = await run(way, "cat", "/proc/self/status", capabilities=names)
        status = {key: value.split() for key, _, value in (line.partition(":") for line in ran.output.splitlines())}
        assert {int(status[key][0], 16) for key in ("CapPrm", "CapEff", "CapBnd")} == {bits}, ran
        assert (status["Uid"], status["NoNewPrivs"]) == (["0"] * 4, ["1"])


async def it_is_ended_at_its_deadline(way: Beside) -> None:
    """And says so."""
    began = time.monotonic()
    assert "did not end within 0.5 s" in await refusal(run(way, "sleep", "54321", deadline_s=0.5), TransientError)
    assert time.monotonic() - began < 300
    assert not sleepers()


async def what_cannot_be_told_is_an_error(way: Beside) -> None:
    """A program that is missing, one that was killed, and more output than is read."""
    assert await refusal(run(way, "no-such-tool"), PermanentError) == "no-such-tool is not installed"
    assert "killed by SIGKILL" in await refusal(run(way, "sh", "-c", "kill -9 $$"), TransientError)
    assert "wrote 9 MiB" in await refusal(run(way, "head", "-c", str(9 << 20), "/dev/zero"), TransientError)


async def several_at_the_same_time(way: Beside) -> None:
    """Of the same name."""
    said = await asyncio.gather(*(run(way, "echo", str(number)) for number in range(4)))
    assert [ran.output for ran in said] == ["0\n", "1\n", "2\n", "3\n"]


async def refusal(running: Coroutine[object, object, Ran], kind: type[ActionError]) -> str:
    try:
        await running
    except kind as error:
        return str(error)
    raise AssertionError("no error")


def wait_forgotten() -> None:
    command = ["systemctl", "list-units", "--all", "--no-legend", "--plain", "vmhost-beside-case*"]
    until_s = time.monotonic() + 30
    while said := subprocess.run(command, capture_output=True, text=True, check=True).stdout:
        assert time.monotonic() < until_s, said
        time.sleep(0.05)


def sleepers() -> list[str]:
    done = subprocess.run(["pgrep", "-fx", "sleep 54321"], capture_output=True, text=True, check=False)
    return done.stdout.split()


CASES: dict[str, Callable[[Beside], Coroutine[object, object, None]]] = {
    case.__name__: case
    for case in (
        what_it_writes_and_its_code_are_told,
        an_end_in_the_moment_of_the_start_is_told,
        it_has_the_rights_that_are_named,
        it_is_ended_at_its_deadline,
        what_cannot_be_told_is_an_error,
        several_at_the_same_time,
    )
}


async def run_case(case: str, folder: Path, *, as_units: bool) -> None:
    """Run one case in one way."""
    starts: Starts = UnitStarts(ServiceManager(), folder) if as_units else ChildStarts()
    try:
        await CASES[case](starts.beside())
        if as_units:  # they are forgotten though whoever started them is still connected
            await asyncio.to_thread(wait_forgotten)
    finally:
        starts.close()


if __name__ == "__main__":
    asyncio.run(run_case(sys.argv[1], Path(sys.argv[2]), as_units=True))
