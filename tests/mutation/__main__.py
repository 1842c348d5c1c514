"""`python -m tests.mutation [MODULE…]`: how many mutants of the planner the tests notice, and which they do not.

Each mutant lives in a forked process of its own, where the module's code is exchanged before anything imports it. First
the tables are tried, which take milliseconds; then hypothesis, with the same examples each time and without shrinking.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.machinery
import inspect
import itertools
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import NoReturn

from hypothesis import HealthCheck, Phase, settings

from tests.mutation.operators import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "planning",
    *(f"planner.{name}" for name in ("vms", "taps", "rates", "bridges", "approval", "policy")),
)
TABLES = tuple(
    f"tests.unit.test_{name}"
    for name in (
        *("planning", "planning_guards", "planning_exactly", "planning_crowds", "policy"),
        *("plan_space", "plan_platform", "plan_media", "plan_stopping", "plan_rates"),
    )
)
PROPERTIES = ("tests.property.test_planning",)
SETTINGS = "_hypothesis_internal_use_settings"
"""Where `@settings` leaves them; hypothesis has no other way to run a test with fewer examples than it says."""
EXAMPLES = 20
"""Of each property: enough for what the tables do not notice, and few enough for a thousand mutants."""
CPU_LIMIT_S = 60
"""More than all tests together need: a mutant that takes longer loops for ever."""


class _Exchange(importlib.machinery.SourceFileLoader):
    """Imports one module from a mutant's code."""

    def __init__(self, module: str, code: CodeType) -> None:
        super().__init__(module, str(ROOT / f"{module.replace('.', '/')}.py"))
        self._code = code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        return importlib.machinery.ModuleSpec(fullname, self) if fullname == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        del fullname
        return self._code


def _tests(module: str) -> Iterator[Callable[[], None]]:
    for name, function in vars(importlib.import_module(module)).items():
        if name.startswith("test_"):
            known = getattr(function, SETTINGS, None)
            if known is not None:
                vars(function)[SETTINGS] = settings(known, max_examples=EXAMPLES)
            for arguments in _cases(function):
                case = functools.partial(function, **arguments)
                if any(p.default is p.empty for p in inspect.signature(case).parameters.values()):
                    raise TypeError(f"{module}.{name} has fixtures: mutants are shown plain functions only")
                yield case


def _cases(function: Callable[..., None]) -> Iterator[dict[str, object]]:
    """The arguments of each case of a test, as `pytest.mark.parametrize` lists them; marks are multiplied."""
    marks = [mark for mark in getattr(function, "pytestmark", ()) if mark.name == "parametrize"]
    choices = []
    for mark in marks:
        names, values = mark.args
        several = not isinstance(names, str)
        choices.append([dict(zip(names, value, strict=True)) if several else {names: value} for value in values])
    for chosen in itertools.product(*choices):
        yield {name: value for case in chosen for name, value in case.items()}


def _run(mutant: Mutant | None, folder: list[str]) -> NoReturn:
    """In a process of its own: exit 0 if no test notices the mutant."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the process ends with it
    if mutant is not None:
        sys.meta_path.insert(0, _Exchange(mutant.module, mutant.code))
    try:
        for module in folder:
            for test in _tests(module):
                test()
    except BaseException:  # noqa: BLE001 - whatever it is, the mutant was noticed
        os._exit(1)
    os._exit(0)


def _fork(mutant: Mutant | None) -> int:
    pid = os.fork()
    if pid == 0:
        _run(mutant, [*TABLES, *PROPERTIES])
    return pid


def survivors_of(mutants: Sequence[Mutant], at_once: int) -> list[Mutant]:
    """The mutants that no test notices."""
    running: dict[int, Mutant] = {}
    survivors: list[Mutant] = []
    for number, mutant in enumerate(mutants):
        while len(running) >= at_once:
            _reap(running, survivors)
        running[_fork(mutant)] = mutant
        if sys.stderr.isatty() or number % 50 == 0:
            print(f"{number} of {len(mutants)} mutants, {len(survivors)} not noticed", file=sys.stderr, flush=True)
    while running:
        _reap(running, survivors)
    return sorted(survivors, key=str)


def _reap(running: dict[int, Mutant], survivors: list[Mutant]) -> None:
    pid, status = os.wait()
    mutant = running.pop(pid)
    if os.waitstatus_to_exitcode(status) == 0:
        survivors.append(mutant)
        print(f"not noticed: {mutant}", file=sys.stderr, flush=True)


def main() -> int:
    """Exit 0 when it ran, whatever the score; 2 when the tests fail without any mutant."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}; all, if none is named")
    parser.add_argument("--at-once", type=int, default=len(os.sched_getaffinity(0)), help="how many processes")
    parser.add_argument("--json", type=Path, help="write the result there as well")
    arguments = parser.parse_args()
    settings.register_profile(
        "mutants",
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutants")
    if os.waitstatus_to_exitcode(os.waitpid(_fork(None), 0)[1]) != 0:
        print("the tests fail without any mutant: mend them first", file=sys.stderr)
        return 2
    began = time.monotonic()
    mutants = [
        mutant
        for name in arguments.modules or MODULES
        for mutant in mutants_of(f"agent.core.{name}", (ROOT / f"agent/core/{name.replace('.', '/')}.py").read_text())
    ]
    survivors = survivors_of(mutants, arguments.at_once)
    _tell(mutants, survivors, time.monotonic() - began)
    if arguments.json:
        result = {"mutants": len(mutants), "survivors": [str(mutant) for mutant in survivors]}
        arguments.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return 0


def _tell(mutants: Sequence[Mutant], survivors: Sequence[Mutant], seconds: float) -> None:
    total, left = Counter(m.module for m in mutants), Counter(m.module for m in survivors)
    for module, number in total.items():
        print(f"{module:26} {number:5} mutants, {number - left[module]:5} noticed, {_percent(number, left[module])}")
    print(f"{'all':26} {len(mutants):5} mutants, {len(mutants) - len(survivors):5} noticed, ", end="")
    print(f"{_percent(len(mutants), len(survivors))}, in {seconds:.0f} s")


def _percent(total: int, survivors: int) -> str:
    return f"{100 * (total - survivors) / max(total, 1):.1f} %"


if __name__ == "__main__":
    sys.exit(main())
