"""`vmhost move` and `vmhost confirm`: how moves of uplinks stand, and the word that keeps one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from agent.cli.client import AgentClient
from agent.cli.tables import write_line, write_table

TRUE = 0


def add_commands(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Add both to the grammar."""
    shown = add("move", "show how moves of uplinks to their bridges stand")
    shown.set_defaults(run=move)
    word = add("confirm", "keep the move of an uplink, which is put back otherwise")
    word.add_argument("bridge", metavar="BRIDGE", nargs="?", help="the bridge; default: the only one that waits")
    word.set_defaults(run=confirm)


def move(arguments: argparse.Namespace) -> int:
    """`vmhost move`."""
    found = AgentClient(Path(arguments.run_dir)).moves()
    if arguments.json:
        print(json.dumps(found, indent=2))
        return TRUE
    rows = []
    for one in found["moves"]:
        left = "" if one["left_s"] is None else f"{one['left_s']:.0f} s left"
        carried = ", ".join(one["carried"])
        rows.append((one["bridge"], one["port"] or "", one["state"], one["since"] or "", left, one["why"], carried))
    write_table(sys.stdout, ("BRIDGE", "PORT", "STATE", "SINCE", "DEADLINE", "WHY", "CARRIED"), rows)
    if not rows:
        write_line(sys.stdout, "no uplink was moved")
    return TRUE


def confirm(arguments: argparse.Namespace) -> int:
    """`vmhost confirm [BRIDGE]`."""
    write_line(sys.stdout, AgentClient(Path(arguments.run_dir)).confirm(arguments.bridge))
    return TRUE
