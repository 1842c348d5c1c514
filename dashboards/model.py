"""A dashboard as a value, and as the JSON that Grafana imports.

The JSON is that of schema version 39, Grafana 11's; 12 migrates it as it is loaded. Ids of panels and refIds of queries
are given here, and places on the grid as well, so that they cannot collide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SCHEMA_VERSION = 39
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
TAG = "vmhost"

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Query:
    """One expression of a panel. `legend` is Grafana's template, such as `{{vm}}`; `form` is how the answer is read."""

    expr: str
    legend: str = ""
    form: str = "time_series"


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel of a kind that `dashboards.panels` makes; `unit` is one of Grafana's. Width of 24, height in rows."""

    kind: str
    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    height: int = 8
    options: Json = field(default_factory=dict)
    custom: Json = field(default_factory=dict)
    defaults: Json = field(default_factory=dict)
    overrides: tuple[Json, ...] = ()
    transformations: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading, placed from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """What is chosen above the panels: the values of a label in the series of a selector."""

    name: str
    label: str
    series: str
    several: bool = True


@dataclass(frozen=True, slots=True)
class Annotation:
    """A mark at the time that an expression has as its value, in milliseconds."""

    name: str
    expr: str
    title: str
    color: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A dashboard, written to `NAME.json` with the uid `vmhost-NAME`."""

    name: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    annotations: tuple[Annotation, ...]
    rows: tuple[Row, ...]


def to_json(dashboard: Dashboard, all_of_them: Sequence[Dashboard]) -> Json:
    """What Grafana imports; links lead to the others of them."""
    return {
        "uid": f"vmhost-{dashboard.name}",
        "id": None,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_annotation(one) for one in dashboard.annotations]},
        "templating": {"list": [_datasource(), *(_variable(one) for one in dashboard.variables)]},
        "links": [_link(other) for other in all_of_them if other.name != dashboard.name],
        "panels": list(_panels(dashboard.rows)),
    }


def _panels(rows: tuple[Row, ...]) -> Iterator[Json]:
    number, y = 1, 0
    for row in rows:
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
            "panels": [],
        }
        number, y, x, tallest = number + 1, y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                y, x, tallest = y + tallest, 0, 0
            yield _panel(panel, number, {"h": panel.height, "w": panel.width, "x": x, "y": y})
            number, x, tallest = number + 1, x + panel.width, max(tallest, panel.height)
        y += tallest


def _panel(panel: Panel, number: int, place: Json) -> Json:
    defaults = {"unit": panel.unit, "custom": panel.custom, **panel.defaults}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": list(panel.overrides)},
        "options": panel.options,
        "targets": [_target(query, chr(ord("A") + index)) for index, query in enumerate(panel.queries)],
        **({"transformations": list(panel.transformations)} if panel.transformations else {}),
    }


def _target(query: Query, ref_id: str) -> Json:
    is_table = query.form == "table"
    return {
        "refId": ref_id,
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "format": query.form,
        "instant": is_table,
        "range": not is_table,
    }


def _datasource() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "refresh": 1,
        "multi": False,
        "includeAll": False,
    }


def _variable(variable: Variable) -> Json:
    query = f"label_values({variable.series}, {variable.name})"
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{variable.name}"},
        "refresh": 2,  # as the time range changes: guests come and go
        "sort": 7,  # by name as people read numbers in names
        "multi": variable.several,
        "includeAll": variable.several,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]} if variable.several else {},
        "hide": 0,
    }


def _annotation(annotation: Annotation) -> Json:
    return {
        "name": annotation.name,
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "expr": annotation.expr,
        "titleFormat": annotation.title,
        "textFormat": "",
        "useValueForTime": True,
        "iconColor": annotation.color,
        "target": {"refId": "Anno"},
    }


def _link(other: Dashboard) -> Json:
    return {
        "title": other.title,
        "tooltip": other.description,
        "type": "link",
        "icon": "dashboard",
        "url": f"/d/vmhost-{other.name}",
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "asDropdown": False,
        "tags": [],
    }
