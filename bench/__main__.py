"""`python -m bench [NAME…]`: measures, prints a table, writes the same as JSON. Exit 0, whatever the figures are."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import exposition, forwards, links, planning, scrape, starts
from bench.figures import Figure, table

BENCHES: dict[str, Callable[[], Iterator[Figure]]] = {
    "one-by-one": starts.one_by_one,
    "tap-deleted": links.tap_deleted,
    "tap-out": links.tap_out_of_its_bridge,
    "bridge-deleted": links.bridge_deleted,
    "many": starts.many_at_once,
    "one-edit": planning.one_edit,
    "plan": planning.nothing_to_do,
    "one-forward": forwards.one_forward,
    "transaction": forwards.transaction,
    "flush": forwards.flushed,
    "scrape": scrape.scrape,
    "render": exposition.render,
}


def machine() -> str:
    """What it was measured on, in one line."""
    cpus = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    memory_kb = int(Path("/proc/meminfo").read_text().split()[1])
    version = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    ).stdout.split()[3]
    return (
        f"{len(os.sched_getaffinity(0))} cores of {cpus[0] if cpus else platform.machine()}, {memory_kb / 1e6:.0f} GB, "
        f"Linux {platform.release()}, Python {platform.python_version()}, QEMU {version}, TCG, "
        f"load {os.getloadavg()[0]:.1f} at the start"
    )


def main() -> int:
    """Run the benches that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where to write (%(default)s)")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - BENCHES.keys()
    if unknown:
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    where = machine()
    figures: list[Figure] = []
    for name in arguments.names or BENCHES:
        began = time.monotonic()
        figures += BENCHES[name]()
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(f"{where}\n\n{table(figures)}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": where, "figures": [figure.as_json() for figure in figures]}
    arguments.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
