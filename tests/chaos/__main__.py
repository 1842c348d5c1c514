"""Runs a storm by hand; see `python -m tests.chaos --help`. Exit 0 only if everything held."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.agent_process import AgentProcess
from tests.chaos.scene import Scene, run_folders
from tests.chaos.storm import Storm, Tally, ViolationError
from tests.netns import network_namespace

REPORT_EVERY = 250


def report(tally: Tally, took_s: float) -> None:
    """Print counts, and the longest time that each kind of fault took to heal."""
    print(f"{tally.faults} faults in {tally.bursts} bursts, {took_s:.0f} s")
    print(f"longest wait for settled {tally.longest_settle_s:.2f} s")
    print(f"agent: at most {tally.most_descriptors} descriptors, {tally.most_mib:.0f} MiB")
    print(f"\n{'fault':<32} {'count':>6} {'longest heal':>13} {'agent away':>13}")
    for name, kind in sorted(tally.kinds.items()):
        print(f"{name:<32} {kind.count:>6} {kind.longest_s * 1000:>10.0f} ms {kind.alone_s * 1000:>10.0f} ms")
    sys.stdout.flush()


def run(faults: int, seed: int, json_path: str | None) -> int:
    """One storm in a network namespace and a folder of its own; the folder is kept if something did not hold."""
    print(f"seed {seed}, {faults} faults", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="vmhost-chaos-", dir="/var/tmp"))
    run_folders(folder)
    began, told = time.monotonic(), 0
    with network_namespace():
        scene = Scene(AgentProcess(folder))
        storm = Storm(scene, random.Random(seed))

        def progress(tally: Tally) -> None:
            nonlocal told
            if tally.faults >= told + REPORT_EVERY:
                told = tally.faults
                print(f"{tally.faults} faults held, {time.monotonic() - began:.0f} s", flush=True)

        violation = ""
        try:
            scene.set_up()
            storm.rage(faults, progress)
        except ViolationError as error:
            violation = str(error)
        finally:
            scene.tear_down()
    report(storm.tally, time.monotonic() - began)
    if json_path:
        plain = dataclasses.asdict(storm.tally) | {"seed": seed, "violation": violation}
        Path(json_path).write_text(json.dumps(plain, indent=2) + "\n")
    print(f"\nVIOLATION {violation}\nthe agent's log is in {folder}" if violation else "\nno violation", flush=True)
    if not violation:
        shutil.rmtree(folder)
    return 1 if violation else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--json", help="where to write the result as JSON")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left behind
    return run(arguments.faults, arguments.seed, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
