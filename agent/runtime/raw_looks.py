"""The doctor's looks that need raw sockets, which the agent may not open: each is a command beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.core.errors import ActionError, ObservationError
from agent.host.dhcp_probe import Answer, probe_command, read_answers
from agent.host.ruleset import legacy_commands
from agent.runtime.beside import Beside, Task, run_beside
from agent.runtime.threads import run_to_end

PROBE_DEADLINE_S = 15.0
"""It listens for some seconds, after Python has started; a host may be busy."""

SAVE_DEADLINE_S = 5.0


async def ask_servers(way: Beside, bridges: Sequence[str]) -> Sequence[Answer]:
    """What other DHCP servers offer on each of these bridges. Raises ObservationError if nobody can be asked."""
    return read_answers(await _output(way, Task("dhcp-probe", probe_command(bridges), ["net_raw"], PROBE_DEADLINE_S)))


async def save_legacy(way: Beside) -> Mapping[str, str]:
    """What the tools of iptables-legacy save, by family (`ip`, `ip6`); none where it has no tables, as on most hosts.

    Raises ObservationError where there are some, and they cannot be read.
    """
    saved = {}
    for family, command in (await run_to_end(legacy_commands)).items():
        task = Task(f"iptables-{family}", command, ["net_admin", "net_raw"], SAVE_DEADLINE_S)
        saved[family] = await _output(way, task)
    return saved


async def _output(way: Beside, task: Task) -> str:
    try:
        ran = await run_beside(way, task)
    except ActionError as e:
        raise ObservationError(task.name, str(e)) from e
    if ran.code != 0:
        raise ObservationError(task.name, ran.errors.strip()[-300:] or f"exit {ran.code}")
    return ran.output
