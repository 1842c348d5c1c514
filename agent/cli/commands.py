"""What each subcommand does: ask, write, and give the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from agent.cli.client import AgentClient, Json, NoAgentError, RefusedError
from agent.cli.progress import Progress
from agent.cli.render import why_not, write_event, write_pending, write_status
from agent.cli.tables import write_line
from agent.core.text import printable, suggestion

TRUE, FALSE, USAGE, NO_AGENT = 0, 1, 2, 3
"""Exit codes: what was asked holds, does not hold, wrong usage, no agent answers."""


def complain(message: str) -> None:
    """One line on stderr."""
    print(f"vmhost: {printable(message)}", file=sys.stderr)


def check(arguments: argparse.Namespace) -> int:
    """`vmhost check [PATH…]`: offline, needs no agent."""
    from agent.cli.check import check as check_units  # noqa: PLC0415 - the parser is slow to import

    return check_units(arguments.paths, Path(arguments.units), sys.stdout)


def status(arguments: argparse.Namespace) -> int:
    """`vmhost status [NAME]`."""
    found = _client(arguments).status()
    if arguments.name is not None:
        names = [one["name"] for one in [*found["bridges"], *found["vms"]]]
        if arguments.name not in names:
            hint = suggestion(arguments.name, names)
            complain(f'no guest and no bridge is named "{arguments.name}"' + (f"; {hint}" if hint else ""))
            return FALSE
        found = _only(found, arguments.name)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        write_status(sys.stdout, found)
        write_pending(sys.stdout, found)
    return TRUE


def _only(status: Json, name: str) -> Json:
    """The same status, of one guest or bridge only, with the files that they come from."""
    vms = [vm for vm in status["vms"] if vm["name"] == name]
    bridges = [bridge for bridge in status["bridges"] if bridge["name"] == name]
    files = {one["file"] for one in [*vms, *bridges]}
    return {
        **status,
        "vms": vms,
        "bridges": bridges,
        "units": [unit for unit in status["units"] if unit["file"] in files],
    }


def wait(arguments: argparse.Namespace) -> int:
    """`vmhost wait [settled | in-sync | running NAME | stopped NAME]`."""
    return _wait(arguments, arguments.what, arguments.name)


def events(arguments: argparse.Namespace) -> int:
    """`vmhost events [-f]`."""
    for event in _client(arguments).events(0, follow=arguments.follow):
        if arguments.json:
            print(json.dumps(event))
        else:
            write_event(sys.stdout, event)
        if arguments.follow:
            sys.stdout.flush()
    if arguments.follow:
        raise NoAgentError("the agent went away")
    return TRUE


def intent(arguments: argparse.Namespace) -> int:
    """`vmhost start|stop|restart|reset|pause|resume|release NAME`: note the intent, then wait until it is true."""
    message = _client(arguments).intent(arguments.command, arguments.name)
    if arguments.no_wait or arguments.command == "release":  # which is true as soon as it is noted
        write_line(sys.stdout, message)
        return TRUE
    return _wait(arguments, {"stop": "stopped", "pause": "paused"}.get(arguments.command, "running"), arguments.name)


def hold(arguments: argparse.Namespace) -> int:
    """`vmhost hold NAME [--reason TEXT]`: note it, then wait until nothing is done to the guest any more."""
    message = _client(arguments).hold(arguments.name, arguments.reason)
    if arguments.no_wait:
        write_line(sys.stdout, message)
        return TRUE
    return _wait(arguments, "held", arguments.name)


def approve(arguments: argparse.Namespace) -> int:
    """`vmhost approve ID`."""
    write_line(sys.stdout, _client(arguments).approve(arguments.id))
    return TRUE


def down(arguments: argparse.Namespace) -> int:
    """`vmhost down` and `vmhost up`: note it, then wait; a guest that hangs has its own deadline."""
    message = _client(arguments).set_down(down=arguments.command == "down")
    if arguments.no_wait:
        write_line(sys.stdout, message)
        return TRUE
    return _wait(arguments, "settled", None)


def shutdown_all(arguments: argparse.Namespace) -> int:
    """`vmhost shutdown-all [--timeout S]`: stop all guests within one budget, and say how it goes."""
    from agent.cli.shutdown import DEFAULT_BUDGET_S, shut_all_down  # noqa: PLC0415 - seldom needed

    budget_s = DEFAULT_BUDGET_S if arguments.timeout is None else arguments.timeout
    return TRUE if shut_all_down(_client(arguments), budget_s, sys.stdout, as_json=arguments.json) else FALSE


def _client(arguments: argparse.Namespace) -> AgentClient:
    return AgentClient(Path(arguments.run_dir))


def _wait(arguments: argparse.Namespace, what: str, name: str | None) -> int:
    client = _client(arguments)
    with Progress(sys.stderr, _describe(client, what, name)):
        came_true, message = client.wait(what, name, arguments.timeout)
    if arguments.json:
        print(json.dumps({"ok": came_true, "message": message}))
    elif came_true:
        write_line(sys.stdout, message)
    else:
        complain(message)
    return TRUE if came_true else FALSE


def _describe(client: AgentClient, what: str, name: str | None) -> Callable[[], str]:
    goal = f"vm {name} to be {what}" if name is not None else f"the host to be {what}"

    def describe() -> str:
        try:
            reason = why_not(client.status(timeout_s=1.0), name)
        except NoAgentError:
            reason = "no agent answers yet"
        except RefusedError as error:
            reason = str(error)
        return f"waiting for {goal}" + (f": {reason}" if reason else "")

    return describe
