"""The `vmhost` command: its arguments, and one line for everything that can go wrong."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence

from agent.cli import commands, doctor, explain, moves, tools, top
from agent.cli.client import NoAgentError, RefusedError
from agent.core.defaults import RUN_DIR, STATE_DIR, UNITS_DIR

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

NAMED = ("running", "stopped", "paused", "held")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (see `commands`)."""
    parser = build_parser()
    parsed = parser.parse_args(arguments, _defaults())
    if parsed.command is None:
        parser.print_help(sys.stderr)
        return commands.USAGE
    _refuse_odd_waits(parser, parsed)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough; the interpreter must not complain of it when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return commands.TRUE
    except NoAgentError as error:
        commands.complain(str(error))
        return commands.NO_AGENT
    except RefusedError as error:
        commands.complain(str(error))
        return commands.FALSE
    return code


def build_parser() -> argparse.ArgumentParser:
    """The whole grammar. Directory flags and `--json` stand before or after the subcommand."""
    flags = _common_flags()
    parser = argparse.ArgumentParser(
        prog="vmhost", description="Ask the vmhost agent, or tell it.", parents=[flags], allow_abbrev=False
    )
    subcommands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return subcommands.add_parser(name, help=text, description=text, parents=[flags], allow_abbrev=False)

    check = add("check", "validate unit files, offline and without root")
    check.add_argument("paths", metavar="PATH", nargs="*", help="files or directories; default: the unit directory")
    check.set_defaults(run=commands.check)
    status = add("status", "show what runs and what stands in the way")
    status.add_argument("name", metavar="NAME", nargs="?", help="only this guest or bridge")
    status.set_defaults(run=commands.status)
    wait = add("wait", "return when it is true")
    wait.add_argument("what", nargs="?", default="settled", choices=("settled", "in-sync", *NAMED))
    wait.add_argument("name", metavar="NAME", nargs="?", help="the guest, for all but settled and in-sync")
    _add_timeout(wait)
    wait.set_defaults(run=commands.wait)
    events = add("events", "show what happened")
    events.add_argument("-f", "--follow", action="store_true", help="go on with what happens from now on")
    events.set_defaults(run=commands.events)
    _add_intents(add)
    approve = add("approve", "allow what the agent asked about (see status)")
    approve.add_argument("id", metavar="ID")
    approve.set_defaults(run=commands.approve)
    moves.add_commands(add)
    plan = add("plan", "show what the agent would do from here to settled")
    plan.add_argument("paths", metavar="FILE", nargs="*", help="as if these were in the unit directory, by their names")
    plan.add_argument("--without", metavar="NAME", action="append", default=[], help="as if this unit file were gone")
    plan.set_defaults(run=explain.plan)
    why = add("why", "show the chain of reasons for the state of a guest or bridge")
    why.add_argument("name", metavar="NAME")
    why.set_defaults(run=explain.why)
    show = add("show", "show a guest or bridge in its unit, last good, and as it runs, with the differences")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(run=explain.show)
    add(
        "doctor", "find what will break guests though all is as the units say, and the command that mends it"
    ).set_defaults(run=doctor.doctor)
    top.add_command(add)
    tools.add_commands(add)
    return parser


def _add_intents(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """What an operator wants of a guest, or of all of them; each is waited for."""
    for verb, text in INTENTS.items():
        intent = add(verb, text)
        intent.add_argument("name", metavar="NAME", help="the guest")
        intent.add_argument("--no-wait", action="store_true", help="return as soon as the agent knows")
        _add_timeout(intent)
        intent.set_defaults(run=commands.intent)
    hold = add("hold", "have the agent leave a guest, its taps and its disks alone, until it is released")
    hold.add_argument("name", metavar="NAME", help="the guest")
    hold.add_argument("--reason", metavar="TEXT", default="", help="why; shown with the guest")
    hold.add_argument("--no-wait", action="store_true", help="return as soon as the agent knows")
    _add_timeout(hold)
    hold.set_defaults(run=commands.hold)
    shutdown = add("shutdown-all", "stop all guests, last started first, within one time budget, as `down` does")
    shutdown.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        help="all guests' time together (default: 240 s); what runs then is ended",
    )
    shutdown.set_defaults(run=commands.shutdown_all)
    for verb, text in HOST.items():
        host = add(verb, text)
        host.add_argument("--no-wait", action="store_true", help="return as soon as the agent knows")
        _add_timeout(host)
        host.set_defaults(run=commands.down)


INTENTS = {
    "start": "start a guest, and keep it running by its unit",
    "stop": "stop a guest, and keep it stopped",
    "restart": "stop and start a guest; pending changes are applied",
    "reset": "press a guest's reset button",
    "pause": "stop a guest's processors, and keep them so until it is resumed, started or restarted",
    "resume": "let a guest go on, whoever or whatever paused it",
    "release": "give a guest back to the agent that is held",
}


HOST = {
    "down": "stop all guests, last started first, and start none until `vmhost up` or the host's next boot",
    "up": "let guests start again after `vmhost down` or `vmhost shutdown-all`",
}


def _defaults() -> argparse.Namespace:
    """What holds unless a flag says otherwise; defaults of a parser would overwrite flags before the subcommand."""
    return argparse.Namespace(
        command=None, units=UNITS_DIR, run_dir=RUN_DIR, state_dir=STATE_DIR, json=False, timeout=None
    )


def _common_flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    flags.add_argument("--units", metavar="DIR", help=f"unit directory (default {UNITS_DIR})")
    flags.add_argument("--run-dir", metavar="DIR", help=f"run directory (default {RUN_DIR})")
    flags.add_argument("--state-dir", metavar="DIR", help=f"state directory (default {STATE_DIR})")
    flags.add_argument("--json", action="store_true", help="for programs")
    return flags


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", metavar="S", type=_seconds, help="give up after S seconds (default: never)")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f'"{text}" is no number of seconds')
    return value


def _refuse_odd_waits(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    if parsed.command != "wait":
        return
    if parsed.what in NAMED and parsed.name is None:
        parser.error(f"wait {parsed.what}: which guest? vmhost wait {parsed.what} NAME")
    if parsed.what not in NAMED and parsed.name is not None:
        parser.error(f"wait {parsed.what} is about the whole host and takes no name")


if __name__ == "__main__":
    sys.exit(main())
