"""The text formats: what a client asks for, what it gets, and that no name can break a line."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.core.measures import Histogram
from agent.telemetry.catalogue import METRICS
from agent.telemetry.catalogue_agent import EVENTS
from agent.telemetry.counting import Counted
from agent.telemetry.exposition import TEXT, Form, exposition, form_of, histogram_lines, line
from agent.telemetry.metrics import MOST_UNFORESEEN, OTHER, Metrics
from tests.exposition import openmetrics_families, samples_of, text_families, value

OPENMETRICS = Form(openmetrics=True)

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
        ("application/openmetrics-text", True),
        ('Application/OpenMetrics-Text; version="1.0.0"', True),
        ("application/openmetrics-text,text/plain", True),
        ("text/plain;version=0.0.4;q=0.9,application/openmetrics-text;q=0.1", False),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;version=2.0.0,text/plain", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=many", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("*/*", False),
        ("", False),
        (";;,,=;q", False),
    ],
)
def test_openmetrics_is_for_who_asks_for_it(accept: str, openmetrics: bool) -> None:
    assert form_of(accept, "").openmetrics == openmetrics


@pytest.mark.parametrize(
    ("accepted", "zipped"),
    [("gzip", True), ("deflate, GZIP;q=0.5, br", True), ("gzip;q=0", False), ("identity", False), ("", False)],
)
def test_gzip_is_for_who_asks_for_it(accepted: str, zipped: bool) -> None:
    assert form_of("", accepted).gzip == zipped


def test_headers_say_what_it_is() -> None:
    assert TEXT.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert OPENMETRICS.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert TEXT.headers["Vary"] == "Accept, Accept-Encoding"
    assert "Content-Encoding" not in TEXT.headers
    assert Form(gzip=True).headers["Content-Encoding"] == "gzip"


def test_the_formats_differ_in_their_headers_only() -> None:
    blocks = {"passes_total": [line(METRICS["passes_total"], ("success",), 3).encode()]}
    text, openmetrics = (
        exposition(blocks, TEXT).decode(),
        exposition(blocks, OPENMETRICS).decode(),
    )
    assert '# TYPE vmhost_passes_total counter\nvmhost_passes_total{result="success"} 3.0\n' in text
    assert '# TYPE vmhost_passes counter\nvmhost_passes_total{result="success"} 3.0\n' in openmetrics
    assert "# UNIT vmhost_vm_cpu_seconds seconds\n" in openmetrics
    assert openmetrics.endswith("# EOF\n")
    assert "EOF" not in text
    assert "# UNIT" not in text
    assert gzip.decompress(exposition(blocks, Form(openmetrics=True, gzip=True))).decode() == openmetrics


@given(NAMES, NAMES, st.integers(0, 2**62))
@example("100%d\n", '"\\', 1)
def test_any_name_comes_back_as_it_was(vm: str, nic: str, count: int) -> None:
    body = {"nic_receive_bytes_total": [line(METRICS["nic_receive_bytes_total"], (nic, vm), count).encode()]}
    for found in (
        samples_of(openmetrics_families(exposition(body, OPENMETRICS))),
        samples_of(text_families(exposition(body, TEXT))),
    ):
        assert value(found, "nic_receive_bytes_total", vm=vm, nic=nic) == float(count)


@example("100%d\n", [1, 2], 0.5)
@given(NAMES, st.lists(st.integers(0, 2**40), min_size=2, max_size=16), st.floats(0, 1e9))
def test_a_histogram_is_accumulated_whatever_its_guest_is_called(vm: str, counts: list[int], total_s: float) -> None:
    bounds = tuple(0.001 * 2**i for i in range(len(counts) - 1))
    seen = Histogram(bounds, tuple(counts), total_s)
    text = histogram_lines(METRICS["block_latency_seconds"], ("root", "read", vm), seen)
    body = {"block_latency_seconds": [text.encode()]}
    labels = {"disk": "root", "op": "read", "vm": vm}
    for found in (
        samples_of(openmetrics_families(exposition(body, OPENMETRICS))),
        samples_of(text_families(exposition(body, TEXT))),
    ):
        assert value(found, "block_latency_seconds_sum", **labels) == total_s
        assert value(found, "block_latency_seconds_count", **labels) == sum(counts)
        assert value(found, "block_latency_seconds_bucket", **labels, le="+Inf") == sum(counts)
        for place, bound in enumerate(bounds):
            within = value(found, "block_latency_seconds_bucket", **labels, le=repr(bound))
            assert within == sum(counts[: place + 1])


def test_what_lies_on_a_bound_is_below_it() -> None:
    counted = Counted((METRICS["vm_boot_duration_seconds"],))
    for seconds in (0.1, 0.1000001, 0.0, 500.0):
        counted.observe("vm_boot_duration_seconds", seconds)
    found = samples_of(text_families(exposition(counted.blocks(), TEXT)))
    assert value(found, "vm_boot_duration_seconds_bucket", le="0.1") == 2
    assert value(found, "vm_boot_duration_seconds_bucket", le="0.2") == 3
    assert value(found, "vm_boot_duration_seconds_bucket", le="120.0") == 3
    assert value(found, "vm_boot_duration_seconds_bucket", le="+Inf") == 4
    assert value(found, "vm_boot_duration_seconds_count") == 4


def test_what_was_not_foreseen_is_counted_as_well() -> None:
    counted = Counted((METRICS["qmp_events_total"],))
    counted.add("qmp_events_total", "BRAND_NEW", amount=2)
    found = samples_of(openmetrics_families(exposition(counted.blocks(), OPENMETRICS)))
    assert value(found, "qmp_events_total", event="BRAND_NEW") == 2
    assert value(found, "qmp_events_total", event="STOP") == 0


def test_a_qemu_that_invents_names_makes_no_series_without_end() -> None:
    metrics = Metrics(version="0.1.0", qemu="7.2.0", started_s=1.0)
    for number in range(3 * MOST_UNFORESEEN):
        metrics.qmp_event_seen(f"EVENT_{number}")
        metrics.qmp_refused("cont", f"Class{number}")
    metrics.qmp_event_seen("x" * 10_000)
    metrics.qmp_event_seen("STOP")
    found = samples_of(text_families(metrics.render()))
    events = [labels for name, labels in found if name == "vmhost_qmp_events_total"]
    assert len(events) == len(EVENTS) + MOST_UNFORESEEN + 1
    assert value(found, "qmp_events_total", event="EVENT_0") == value(found, "qmp_events_total", event="STOP") == 1
    assert value(found, "qmp_events_total", event=OTHER) == 2 * MOST_UNFORESEEN + 1
    assert value(found, "qmp_command_errors_total", command="cont", **{"class": OTHER}) == 2 * MOST_UNFORESEEN


def test_what_is_counted_after_a_reading_is_in_the_next_one() -> None:
    counted = Counted((METRICS["qmp_events_total"], METRICS["passes_total"]))
    assert counted.blocks() == counted.blocks()
    counted.add("passes_total", "success")
    assert b'vmhost_passes_total{result="success"} 1.0\n' in counted.blocks()["passes_total"][0]


def test_each_series_of_a_metric_shows_what_was_counted_last() -> None:
    counted = Counted((METRICS["qmp_command_duration_seconds"],))
    for seconds in (0.5, 0.25):
        for command in ("cont", "stop"):
            counted.observe("qmp_command_duration_seconds", seconds, command)
            counted.blocks()
    counted.observe("qmp_command_duration_seconds", 1.0, "cont")
    found = samples_of(text_families(exposition(counted.blocks(), TEXT)))
    for command, sum_s, count in (("cont", 1.75, 3), ("stop", 0.75, 2)):
        assert value(found, "qmp_command_duration_seconds_sum", command=command) == sum_s
        assert value(found, "qmp_command_duration_seconds_count", command=command) == count
        assert value(found, "qmp_command_duration_seconds_bucket", command=command, le="+Inf") == count
