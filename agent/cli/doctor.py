"""`vmhost doctor`: what will break guests though the agent's own state is right, and what mends it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TextIO

from agent.cli.client import AgentClient, Json
from agent.cli.commands import FALSE, TRUE
from agent.cli.progress import Progress
from agent.cli.tables import write_line
from agent.core.text import counted


def doctor(arguments: argparse.Namespace) -> int:
    """`vmhost doctor`: 0 if nothing is found, else 1."""
    with Progress(sys.stderr, lambda: "looking at the host's rules, routes and links, and for other DHCP servers"):
        found = AgentClient(Path(arguments.run_dir)).doctor()
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        write_doctor(sys.stdout, found)
    return FALSE if found["findings"] else TRUE


def write_doctor(out: TextIO, found: Json) -> None:
    """Write each finding with the commands that mend it, then what could not be looked at."""
    for one in found["findings"]:
        write_line(out, f"{one['resource']}: {one['finding']}: {one['what']}")
        write_line(out, f"  {one['why']}")
        for command in one["commands"]:
            write_line(out, f"  $ {command}")
    for one in found["unexamined"]:
        write_line(out, f"not looked at: {one['finding']}: {one['why']}")
    number = len(found["findings"])
    looked = " in what could be looked at" if found["unexamined"] else ""
    write_line(out, counted(number, "finding") if number else f"nothing found{looked} that would break guests")
