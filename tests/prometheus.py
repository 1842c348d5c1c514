"""A real Prometheus on loopback, in the network namespace of the caller: scrapes an agent each second."""

from __future__ import annotations

import contextlib
import json
import math
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = "127.0.0.1:9090"
CONFIGURATION = """\
global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}
rule_files: ["{rules}"]
scrape_configs: [{{ job_name: vmhost, static_configs: [{{ targets: ["{target}"] }}] }}]
"""
READY_S = 20.0
SUFFIXES = re.compile(r"_(bucket|sum|count)$")


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A server that runs since `began_s`, Unix time."""

    began_s: float

    def numbers(self, expr: str) -> list[float]:
        """Each value of each series that an expression gave at any second since the beginning, but for no-numbers."""
        query = {"query": expr, "start": self.began_s, "end": time.time(), "step": 1}
        found = self._ask("query_range", query)
        values = (float(value) for series in found["result"] for _, value in series["values"])
        return [value for value in values if not math.isnan(value)]

    def names(self) -> set[str]:
        """The names of all metrics that were scraped, without a histogram's suffixes too."""
        found = {str(name) for name in self._ask("label/__name__/values", {"start": self.began_s, "end": time.time()})}
        return found | {SUFFIXES.sub("", name) for name in found}

    def _ask(self, what: str, query: dict[str, Any]) -> Any:
        url = f"http://{SERVER}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from error


@contextlib.contextmanager
def prometheus(folder: Path, *, target: str, rules: Path) -> Iterator[Prometheus]:
    """Run one with these rules until the block ends; its data and log lie in `folder`."""
    configuration, log = folder / "prometheus.yml", folder / "prometheus.log"
    configuration.write_text(CONFIGURATION.format(rules=rules, target=target))
    command = ["prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'prometheus'}"]
    began_s = time.time()
    with log.open("wb") as told:
        flags = [f"--web.listen-address={SERVER}", "--log.level=warn"]
        process = subprocess.Popen([*command, *flags], stdin=subprocess.DEVNULL, stdout=told, stderr=told)
    try:
        while not _is_ready():
            assert process.poll() is None, log.read_text()
            assert time.time() - began_s < READY_S, log.read_text()
            time.sleep(0.02)  # it announces it to nobody
        yield Prometheus(began_s)
    finally:
        process.kill()
        process.wait()


def _is_ready() -> bool:
    try:
        with urllib.request.urlopen(f"http://{SERVER}/-/ready", timeout=5):
            return True
    except OSError:
        return False
