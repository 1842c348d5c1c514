"""The page on metrics, from the catalogue that the exporter is made from.

`python -m docs.metrics > docs/metrics.md` writes it; a test says when it is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from agent.telemetry.catalogue import SECTIONS
from agent.telemetry.metric import Metric, MetricType

INTRODUCTION = """\
# Metrics
<!-- Written by `python -m docs.metrics > docs/metrics.md`. -->

All that `http://127.0.0.1:9177/metrics` exports. Names and labels are a promise: dashboards and alerts may rely on
them.

- Two formats, as the client asks by `Accept`: text 0.0.4, and OpenMetrics 1.0, which names units, too. Compressed by
  gzip for who asks for that, as Prometheus does.
- A scrape waits for nobody: guests are looked at beside it, every ten seconds, each with a deadline of its own. Text is
  kept for each guest, made anew only where something changed, and put together in a thread.
- Labels stay the same over restarts of agent and guests. `vm`, `nic`, `disk` and `bridge` are the names of the units;
  no label holds a pid, an ifindex, a path, an address or an error's text. All series of a guest vanish with it.
- Counters are there at zero from the start, with all combinations of labels that can be known beforehand, so that
  `increase()` sees the first event. Those of the agent begin anew with it, those of a guest's QEMU with that.
- While a guest does not run, its counters of processors and disks are zero, and what is a state of it (memory,
  capacity) has no series. A guest that runs and does not answer, as one whose QEMU is stopped or stuck, has none of
  what is measured of it, which Prometheus marks as stale; `vmhost_vm_stale` is 1, `vmhost_vm_state` stays.
- `nic_*` are in the guest's sense: what its tap sends, the guest receives.
"""


def page() -> str:
    """The page as Markdown."""
    return "\n".join([INTRODUCTION.rstrip("\n"), *_sections(), *_buckets()]) + "\n"


def _sections() -> Iterator[str]:
    for title, metrics in SECTIONS:
        yield f"\n## {title}"
        yield "| metric | type | unit | labels | what | from |"
        yield "|---|---|---|---|---|---|"
        yield from map(_row, metrics)


def _row(metric: Metric) -> str:
    labels = " ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.type} | {metric.unit} | {labels} | {metric.help} | {metric.source} |"


def _buckets() -> Iterator[str]:
    yield "\n## Buckets"
    yield "| histogram | upper bounds, in seconds |"
    yield "|---|---|"
    for metric in (metric for _, metrics in SECTIONS for metric in metrics):
        if metric.type is MetricType.HISTOGRAM:
            yield f"| `{metric.name}` | {' '.join(f'{bound:g}' for bound in metric.bounds)} |"


if __name__ == "__main__":
    sys.stdout.write(page())
