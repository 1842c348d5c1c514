"""The dashboards that are committed: what the code says, and what Grafana wants of each."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.core.tell.vm_display import DisplayState
from agent.telemetry.catalogue import CATALOGUE
from dashboards import written
from dashboards.alerts import ALERTS, UP
from dashboards.panels import STATE_COLORS
from dashboards.promql import STATE_CODES
from dashboards.written import DASHBOARDS

SHIPPED = Path(__file__).parents[2] / "dashboards"
RUNBOOKS = SHIPPED.parent / "docs" / "runbooks.md"
WANTED = {
    "host": {"state-timeline", "table", "heatmap"},
    "guest": {"state-timeline", "heatmap", "timeseries"},
    "network": {"heatmap", "table", "timeseries"},
    "agent": {"heatmap", "timeseries"},
}
"""Kinds of panels that a dashboard has, beside others."""

Json = dict[str, Any]

every_dashboard = pytest.mark.parametrize("board", [one.name for one in DASHBOARDS])


def shipped(board: str) -> Json:
    found: Json = json.loads((SHIPPED / f"{board}.json").read_text())
    return found


def panels(board: str) -> list[Json]:
    """All but headings."""
    return [panel for panel in shipped(board)["panels"] if panel["type"] != "row"]


def expressions(board: str) -> Iterator[str]:
    for panel in panels(board):
        yield from (target["expr"] for target in panel["targets"])
    for one in shipped(board)["annotations"]["list"]:
        yield one["expr"]
    for variable in shipped(board)["templating"]["list"][1:]:
        yield variable["query"]["query"]


@pytest.mark.parametrize("name", written.files())
def test_the_committed_files_are_what_the_code_says(name: str) -> None:
    assert (SHIPPED / name).read_text() == written.files()[name], "make dashboards"


def test_nothing_else_is_committed() -> None:
    assert {path.name for path in SHIPPED.iterdir() if path.suffix in {".json", ".yml"}} == written.files().keys()


@every_dashboard
def test_ids_and_ref_ids_are_unique(board: str) -> None:
    ids = [panel["id"] for panel in shipped(board)["panels"]]
    assert sorted(set(ids)) == sorted(ids)
    for panel in panels(board):
        refs = [target["refId"] for target in panel["targets"]]
        assert refs == sorted(set(refs)) != [], panel["title"]


@every_dashboard
def test_no_panel_lies_on_another_or_beside_the_grid(board: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in shipped(board)["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24, panel["title"]
        columns, rows = (range(place[at], place[at] + place[size]) for at, size in (("x", "w"), ("y", "h")))
        for cell in itertools.product(columns, rows):
            assert cell not in taken, f"{panel['title']} lies on {taken[cell]}"
            taken[cell] = panel["title"]


@every_dashboard
def test_every_panel_says_what_it_shows(board: str) -> None:
    for panel in panels(board):
        assert panel["title"], panel["id"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    titles = [(panel["type"], panel["title"]) for panel in panels(board)]
    assert sorted(set(titles)) == sorted(titles)
    assert {kind for kind, _ in titles} >= WANTED[board]


@every_dashboard
def test_every_rate_is_over_grafanas_own_interval(board: str) -> None:
    for expr in expressions(board):
        for interval in re.findall(r"(?:rate|increase|irate|delta)\([^\[]*\[([^\]]*)\]", expr):
            assert interval in {"$__rate_interval", "1h"}, expr  # 1h: what the panel's title says


@every_dashboard
def test_all_that_is_asked_is_asked_of_the_chosen_source_and_hosts(board: str) -> None:
    found = shipped(board)
    source, *others = found["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert {one["name"] for one in others} >= {"instance"}
    targets = [target for panel in panels(board) for target in panel["targets"]]
    for one in (*panels(board), *targets, *others, *found["annotations"]["list"]):
        assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in targets:
        assert target["expr"].count('{instance=~"$instance"') == target["expr"].count("{") > 0, target["expr"]
    names = {one["name"] for one in found["templating"]["list"]} | {"__rate_interval"}
    for expr in expressions(board):
        assert set(re.findall(r"\$(\w+)", expr)) <= names, expr


@every_dashboard
def test_links_lead_to_the_other_dashboards(board: str) -> None:
    uids = {one.name: f"/d/vmhost-{one.name}" for one in DASHBOARDS}
    found = shipped(board)
    assert uids[board] == f"/d/{found['uid']}"
    assert [link["url"] for link in found["links"]] == [url for name, url in uids.items() if name != board]
    assert all(link["includeVars"] and link["keepTime"] for link in found["links"])
    for url in re.findall(r"/d/[\w-]+", json.dumps(found)):
        assert url in uids.values()


def exported() -> Mapping[str, set[str]]:
    """What the agent exports: the labels of each name, histograms without their suffixes."""
    return {metric.name: set(metric.labels) for metric in CATALOGUE}


def test_only_metrics_that_there_are_get_asked_for() -> None:
    known = exported().keys()
    asked = {expr for one in DASHBOARDS for expr in expressions(one.name)} | {b.expr for a in ALERTS for b in a.bounds}
    for expr in asked:
        for name in re.findall(r"vmhost_\w+", expr):
            assert {name, re.sub("_(bucket|sum|count)$", "", name)} & known, f"{name} in {expr}"


def test_every_metric_is_on_some_dashboard() -> None:
    shown = "".join(expr for one in DASHBOARDS for expr in expressions(one.name))
    for name in exported():
        assert name in shown, name


def test_every_state_of_a_guest_has_a_word_and_a_color() -> None:
    states = {state.value for state in DisplayState}
    assert STATE_CODES.keys() == STATE_COLORS.keys() == states
    assert set(UP.split("|")) < states


def test_every_alert_says_what_a_person_needs() -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOKS.read_text(), re.MULTILINE | re.DOTALL))
    assert list(sections) == [alert.name for alert in ALERTS], "a section for each, in the same order"
    rules = (SHIPPED / "alerts.yml").read_text()
    for alert in ALERTS:
        assert alert.severity in {"critical", "warning", "info"}
        assert "$labels.instance" in alert.summary, alert.name
        assert alert.description.endswith("."), alert.name
        assert f"runbook_url: 'docs/runbooks.md#{alert.name.lower()}'" in rules
        for part in ("**Means**: ", "**Look at**: ", "**Do**: "):
            assert part in sections[alert.name], f"{part} of {alert.name}"
