"""A hundred thousand mutated unit files: none is a crash, and every error points at a place in its file.

`VMHOST_FUZZ_SEED` draws others; a failure says its seed and shows the file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.fuzz.checks import parse_many, resolve_many

FILES = 100_000
SETS = 1_500
CHUNKS = 20
SEED = int(os.environ.get("VMHOST_FUZZ_SEED", "0"))


def _in_processes(work: Callable[[int, int], Counter[str]], number: int) -> Counter[str]:
    seeds = range(SEED * CHUNKS, (SEED + 1) * CHUNKS)
    seen: Counter[str] = Counter()
    # Not forked: the test's process may have threads, which a fork would leave in the middle of something.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        for part in pool.map(work, seeds, [number // CHUNKS] * CHUNKS):
            seen += part
    return seen


def test_no_file_is_a_crash_and_every_error_has_its_place() -> None:
    seen = _in_processes(parse_many, FILES)
    print(dict(seen))
    assert seen["valid"] + seen["mistaken"] + seen["not TOML"] == FILES
    assert min(seen["valid"], seen["mistaken"], seen["not TOML"]) > FILES // 100, "the mutations have become one-sided"


def test_no_set_of_files_is_a_crash_and_the_order_is_nothing() -> None:
    seen = _in_processes(resolve_many, SETS)
    print(dict(seen))
    assert min(seen["valid"], seen["held"], seen["invalid"]) > SETS // 100, "the sets have become one-sided"
