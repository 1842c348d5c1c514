"""Prometheus' text formats: lines, headers, and which of the formats a client asks for.

Text 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats) and OpenMetrics 1.0 differ in their headers only: a
counter's family is without `_total` in the latter, which also names units and has an end.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate

from agent.core.measures import Histogram
from agent.telemetry.catalogue import CATALOGUE
from agent.telemetry.metric import Metric

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

GZIP_LEVEL = 1
"""A scrape is read once, over a short way: a higher level takes three times as long for a tenth less."""

_GZIP_WBITS = 31
_LABELS = "\0"
"""Where labels come; nothing else of a form has this letter."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a client wants the exposition."""

    openmetrics: bool = False
    gzip: bool = False

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of an answer in this form."""
        headers = {
            "Content-Type": OPENMETRICS_TYPE if self.openmetrics else TEXT_TYPE,
            "Vary": "Accept, Accept-Encoding",
        }
        return headers | ({"Content-Encoding": "gzip"} if self.gzip else {})


TEXT = Form()
"""What every client reads."""


def form_of(accept: str, accept_encoding: str) -> Form:
    """The form that the headers of a request ask for (RFC 9110); text 0.0.4 where nothing better is asked for.

    OpenMetrics only for who names it, in version 1.0.0 or without one, and prefers it to text, or has no preference.
    """
    openmetrics = text = 0.0
    for name, parameters in _offers(accept):
        weight = _weight(parameters)
        if name == "application/openmetrics-text" and parameters.get("version", "1.0.0") == "1.0.0":
            openmetrics = max(openmetrics, weight)
        elif name == "text/plain" and parameters.get("version", "0.0.4") == "0.0.4":
            text = max(text, weight)
    gzip = any(name == "gzip" and _weight(parameters) > 0 for name, parameters in _offers(accept_encoding))
    return Form(openmetrics > 0 and openmetrics >= text, gzip)


def _offers(header: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    for offer in header.split(","):
        name, *rest = (part.strip() for part in offer.split(";"))
        pairs = (part.partition("=") for part in rest)
        yield name.lower(), {key.strip().lower(): value.strip().strip('"') for key, _, value in pairs}


def _weight(parameters: Mapping[str, str]) -> float:
    try:
        return float(parameters.get("q", "1"))
    except ValueError:
        return 0.0


def exposition(blocks: Mapping[str, Sequence[bytes]], form: Form) -> bytes:
    """All metrics of the catalogue, in its order, with these blocks of lines by short name.

    Blocks are encoded where they are made, and kept so: of megabytes of text one letter beyond ASCII, as some helps
    have, makes a string of two bytes a letter, which takes longer to encode than all else here.
    """
    parts: list[bytes] = []
    for metric in CATALOGUE:
        parts.append(header(metric, form.openmetrics))
        parts.extend(blocks.get(metric.short, ()))
    if form.openmetrics:
        parts.append(b"# EOF\n")
    body = b"".join(parts)
    if not form.gzip:
        return body
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WBITS)
    return packer.compress(body) + packer.flush()


@cache
def header(metric: Metric, openmetrics: bool) -> bytes:
    """The lines before a metric's samples."""
    name = metric.family if openmetrics else metric.name
    text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    unit = f"# UNIT {name} {metric.unit}\n" if openmetrics and metric.unit else ""
    if openmetrics:
        text = text.replace('"', r"\"")
    return encoded((f"# HELP {name} {text}\n# TYPE {name} {metric.type}\n{unit}",))


def encoded(lines: Iterable[str]) -> bytes:
    """Lines as they are sent."""
    return "".join(lines).encode(errors="replace")


def line(metric: Metric, values: tuple[str, ...], value: float) -> str:
    """A sample with these values of its labels, in the metric's order."""
    return f"{_head(metric) % tuple(map(escaped, values))}{value + 0.0!r}\n"


def sample_line(name: str, labels: Mapping[str, str], value: float) -> str:
    """A sample as Prometheus' client has it."""
    told = ",".join(f'{label}="{escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{told}}} {value + 0.0!r}\n" if told else f"{name} {value + 0.0!r}\n"


def histogram_lines(metric: Metric, values: tuple[str, ...], seen: Histogram) -> str:
    """The buckets of a histogram, its sum and its count."""
    counts = tuple(accumulate(seen.counts))
    labels = (_labels(metric) % tuple(map(escaped, values))).replace("%", "%%")
    return _histogram_form(metric, seen.bounds_s).replace(_LABELS, labels) % (*counts, seen.sum_s, counts[-1])


@cache
def _histogram_form(metric: Metric, bounds_s: tuple[float, ...]) -> str:
    """The lines with places for labels and numbers: guests have a thousand histograms, which differ in these only."""
    bucket = f'{metric.name}_bucket{{{_LABELS}{"," if metric.labels else ""}le="'
    braced = f"{{{_LABELS}}}" if metric.labels else ""
    ends = (*(repr(float(bound)) for bound in bounds_s), "+Inf")
    buckets = "".join(f'{bucket}{end}"}} %d\n' for end in ends)
    return f"{buckets}{metric.name}_sum{braced} %r\n{metric.name}_count{braced} %d\n"


@lru_cache(4096)
def escaped(value: str) -> str:
    """A label's value as it may stand between quotes."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


@cache
def _labels(metric: Metric) -> str:
    return ",".join(f'{label}="%s"' for label in metric.labels)


@cache
def _head(metric: Metric) -> str:
    return f"{metric.name}{{{_labels(metric)}}} " if metric.labels else f"{metric.name} "
