"""The kinds of panels, with those of Grafana's options that matter."""

from __future__ import annotations

from collections.abc import Mapping

from dashboards.model import Json, Panel, Query
from dashboards.promql import STATE_CODES

STATE_COLORS = {
    "running": "green",
    "starting": "light-green",
    "stopping": "light-blue",
    "stopped": "text",
    "off": "text",
    "crash-loop": "dark-red",
    "waiting": "light-orange",
    "paused": "blue",
    "panicked": "dark-red",
    "unresponsive": "red",
    "held": "purple",
    "failed": "red",
}
GUEST_LINK = {
    "title": "This guest",
    "url": "/d/vmhost-guest?var-datasource=${datasource}&var-instance=${__data.fields.instance}"
    "&var-vm=${__data.fields.vm}&${__url_time_range}",
}


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    stacked: bool = False,
    points: bool = False,
) -> Panel:
    """Lines over time; `stacked` where their sum means something, `points` where there is a value now and then."""
    return Panel(
        kind="timeseries",
        title=title,
        description=description,
        unit=unit,
        queries=queries,
        width=width,
        options={
            "legend": {
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
                "calcs": ["lastNotNull", "max"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        custom={
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 25 if stacked else 8,
            "showPoints": "always" if points else "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        },
        defaults={"min": 0},
    )


def number(title: str, description: str, unit: str, query: Query, *, bad_from: float | None = None) -> Panel:
    """One number, red from `bad_from` on."""
    steps: list[Json] = [{"color": "text" if bad_from is None else "green", "value": None}]
    if bad_from is not None:
        steps.append({"color": "red", "value": bad_from})
    return Panel(
        kind="stat",
        title=title,
        description=description,
        unit=unit,
        queries=(query,),
        width=4,
        height=4,
        options=_stat_options(),
        defaults={"thresholds": {"mode": "absolute", "steps": steps}},
    )


def state(title: str, description: str, query: Query) -> Panel:
    """The present state as a word; the query gives one of `STATE_CODES`."""
    return Panel(
        kind="stat",
        title=title,
        description=description,
        unit="short",
        queries=(query,),
        width=4,
        height=4,
        options=_stat_options(),
        defaults={"mappings": [STATE_WORDS]},
    )


def words(title: str, description: str, query: Query, label: str) -> Panel:
    """A label's value as text, for series whose own value is always 1."""
    return Panel(
        kind="stat",
        title=title,
        description=description,
        unit="short",
        queries=(Query(query.expr, f"{{{{{label}}}}}"),),
        width=4,
        height=4,
        options={**_stat_options(), "textMode": "name"},
    )


def timeline(title: str, description: str, query: Query, *, width: int = 24, height: int = 6) -> Panel:
    """States over time, one bar for each series; the query gives `STATE_CODES`."""
    return Panel(
        kind="state-timeline",
        title=title,
        description=description,
        unit="short",
        queries=(query,),
        width=width,
        height=height,
        options={
            "alignValue": "left",
            "mergeValues": True,
            "rowHeight": 0.9,
            "showValue": "auto",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
            "tooltip": {"mode": "single", "sort": "none"},
        },
        custom={"fillOpacity": 80, "lineWidth": 0},
        defaults={"mappings": [STATE_WORDS]},
    )


def heatmap(title: str, description: str, expr: str, *, width: int = 8) -> Panel:
    """Bins of a histogram of seconds over time; `expr` gives one series for each `le`."""
    return Panel(
        kind="heatmap",
        title=title,
        description=description,
        unit="s",
        queries=(Query(expr, "{{le}}", "heatmap"),),
        width=width,
        height=9,
        options={
            "calculate": False,
            "cellGap": 1,
            "cellValues": {"unit": "short", "decimals": 0},
            "color": {
                "mode": "scheme",
                "scheme": "Oranges",
                "scale": "exponential",
                "exponent": 0.5,
                "steps": 64,
                "fill": "dark-orange",
                "reverse": False,
            },
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "showValue": "never",
            "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
            "yAxis": {"axisPlacement": "left", "unit": "s", "reverse": False},
        },
        custom={"hideFrom": {"legend": False, "tooltip": False, "viz": False}, "scaleDistribution": {"type": "linear"}},
    )


def table(
    title: str,
    description: str,
    columns: Mapping[str, tuple[str, str]],
    *,
    hidden: tuple[str, ...] = (),
    width: int = 24,
    height: int = 9,
    links: bool = False,
) -> Panel:
    """A row for each set of labels. `columns`: by heading, expression and unit; all must have the same labels.

    The unit `state` shows one of `STATE_CODES` as its word. `hidden`: columns where being there says it all.
    `links`: a row leads to the dashboard of its guest.
    """
    queries = tuple(Query(expr, form="table") for expr, _ in columns.values())
    several = len(columns) > 1
    values = {heading: f"Value #{chr(ord('A') + at)}" if several else "Value" for at, heading in enumerate(columns)}
    overrides: list[Json] = []
    for heading, (_, unit) in columns.items():
        by_name = {"id": "byName", "options": heading}
        if unit == "state":
            cell = {"id": "custom.cellOptions", "value": {"type": "color-text"}}
            overrides.append({"matcher": by_name, "properties": [{"id": "mappings", "value": [STATE_WORDS]}, cell]})
        else:
            overrides.append({"matcher": by_name, "properties": [{"id": "unit", "value": unit}]})
    if links:
        by_name = {"id": "byName", "options": "vm"}
        overrides.append({"matcher": by_name, "properties": [{"id": "links", "value": [GUEST_LINK]}]})
    organize = {
        "excludeByName": dict.fromkeys(("Time", *(values[one] for one in hidden)), True),
        "renameByName": {value: heading for heading, value in values.items()},
    }
    return Panel(
        kind="table",
        title=title,
        description=description,
        unit="short",
        queries=queries,
        width=width,
        height=height,
        options={"cellHeight": "sm", "showHeader": True},
        overrides=tuple(overrides),
        transformations=({"id": "merge", "options": {}}, {"id": "organize", "options": organize}),
    )


def _stat_options() -> dict[str, object]:
    return {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }


def _state_words() -> Json:
    return {
        "type": "value",
        "options": {
            str(code): {"text": word, "color": STATE_COLORS[word], "index": at}
            for at, (word, code) in enumerate(STATE_CODES.items())
        },
    }


STATE_WORDS = _state_words()
