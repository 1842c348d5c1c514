"""`vmhost top`: what each guest does now, live on a terminal, or once as a table."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agent.cli.client import AgentClient
from agent.cli.commands import FALSE, TRUE
from agent.cli.tables import write_table

MIN_INTERVAL_S, DEFAULT_INTERVAL_S = 1.0, 2.0
ORDERS = ("cpu", "memory", "iops", "latency", "disk", "network", "name")


def add_command(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Add `top` to the grammar."""
    top_command = add("top", "show what each guest does: CPU, operations, latency, traffic; q leaves")
    top_command.add_argument(
        "--interval",
        metavar="S",
        type=_interval,
        default=DEFAULT_INTERVAL_S,
        help=f"between two looks, at least {MIN_INTERVAL_S:g} s (default {DEFAULT_INTERVAL_S:g})",
    )
    top_command.add_argument("--sort", choices=ORDERS, default="cpu", help="the order (default cpu)")
    top_command.add_argument(
        "--once", action="store_true", help="a plain table of one interval; so without a terminal, and with --json"
    )
    top_command.set_defaults(run=top)


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not MIN_INTERVAL_S <= value <= 3600:
        raise argparse.ArgumentTypeError(f'"{text}" is no interval: {MIN_INTERVAL_S:g} to 3600 seconds')
    return value


def top(arguments: argparse.Namespace) -> int:
    """`vmhost top [--interval S] [--sort WHAT] [--once]`: 0, also when Ctrl-C ends it; 3 if no agent answers."""
    from agent.cli.screen import is_live  # noqa: PLC0415 - only this command needs it
    from agent.cli.top_live import show  # noqa: PLC0415 - only this command needs it

    if arguments.once or arguments.json or not is_live(sys.stdout, os.environ):
        _write_once(arguments)
        return TRUE
    try:
        show(AgentClient(Path(arguments.run_dir)), arguments.interval, arguments.sort)
    except KeyboardInterrupt:
        pass
    except EOFError:  # the terminal is gone
        return FALSE
    return TRUE


def _write_once(arguments: argparse.Namespace) -> None:
    from agent.cli.top_live import ask, rates_of  # noqa: PLC0415 - only this command needs it
    from agent.cli.top_table import ordered, rows  # noqa: PLC0415 - only this command needs it

    client = AgentClient(Path(arguments.run_dir))
    before = ask(client, arguments.interval)
    time.sleep(arguments.interval)
    guests = ordered(rates_of(before, ask(client, arguments.interval)), arguments.sort)
    if arguments.json:
        print(json.dumps({"interval_s": arguments.interval, "guests": [one.as_json() for one in guests]}, indent=2))
    else:
        write_table(sys.stdout, *rows(guests))
