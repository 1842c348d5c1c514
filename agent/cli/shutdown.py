"""Stops all guests within one budget and tells, a line for each thing that happens, how it goes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TextIO

from agent.cli.client import AgentClient, Json, NoAgentError
from agent.cli.tables import write_line

DEFAULT_BUDGET_S = 240.0
"""Less than the five minutes that vmhost-guests.service has."""

GRACE_S = 10.0
"""What the agent gets beyond the budget to say that all is over."""

LOOK_EVERY_S = 0.25
AFTERWARDS = "none is started before `vmhost up` or the host's next boot"


def shut_all_down(client: AgentClient, budget_s: float, out: TextIO, *, as_json: bool) -> bool:
    """Whether all guests are stopped in the end; an agent that goes away meanwhile is waited for.

    NoAgentError if none answers at first, or none did at the end.
    """
    client.set_down(down=True, budget_s=budget_s)
    began_s = time.monotonic()
    first: Mapping[str, str] | None = None
    told: dict[str, str] = {}
    while True:
        late = time.monotonic() > began_s + budget_s + GRACE_S
        try:
            found = _running(client.status())
        except NoAgentError:
            if late:
                raise
        else:
            first = first or found
            for line in _news(found, told) if not as_json else ():
                write_line(out, f"{time.monotonic() - began_s:6.1f} s  {line}")
                out.flush()
            if not found or late:
                return _conclude(first, found, out, as_json=as_json)
        time.sleep(LOOK_EVERY_S)


def _running(status: Json) -> dict[str, str]:
    """What is being done to each guest whose QEMU is there."""
    busy = {one["resource"]: one["action"] for one in status["agent"]["in_flight"]}
    return {
        vm["name"]: _word(vm, busy.get(f"vm/{vm['name']}", ""))
        for vm in status["vms"]
        if vm["pid"] or busy.get(f"vm/{vm['name']}")
    }


def _word(vm: Json, action: str) -> str:
    if action == "stop-vm":
        return "is being shut down"
    if action:
        return f"is busy: {action}"
    waits = [one["message"] for one in vm["conditions"] if one["type"] == "Waiting"]
    return waits[0] if waits else "runs"


def _news(found: Mapping[str, str], told: dict[str, str]) -> list[str]:
    """What is new since the last look, which is noted in `told`."""
    stopped = [name for name in told if name not in found]
    for name in stopped:
        del told[name]
    changed = [name for name, word in found.items() if told.get(name) != word]
    told.update({name: found[name] for name in changed})
    return [*(f"{name} has stopped" for name in stopped), *(f"{name} {found[name]}" for name in changed)]


def _conclude(first: Mapping[str, str], left: Mapping[str, str], out: TextIO, *, as_json: bool) -> bool:
    stopped = sorted(first.keys() - left.keys())
    if as_json:
        print(json.dumps({"ok": not left, "stopped": stopped, "left": sorted(left)}), file=out)
    elif left:
        write_line(out, f"not stopped in time: {', '.join(sorted(left))}; `vmhost why NAME` says why; {AFTERWARDS}")
    else:
        write_line(out, f"all guests are stopped ({len(stopped)}); {AFTERWARDS}")
    return not left
