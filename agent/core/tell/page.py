"""What the status page shows: tables of words, so that the page itself, with and without scripts, only draws them.

It is made of an allowlist of what `vmhost status` says, because whoever reaches the listener may read it, also where
the agent's socket would refuse him: of what units hold, the values of keys that carry passwords by habit are left out,
and texts that are written by people or programs lose what looks like a secret (`agent.core.tell.redact`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from agent.core.conditions import FINDINGS
from agent.core.tell.rates import GuestRates
from agent.core.tell.redact import redacted
from agent.core.tell.vm_display import DisplayState
from agent.core.text import counted, printable

Json = Mapping[str, Any]

OK, WARN, BAD, DIM = "ok", "warn", "bad", "dim"

HIDDEN = frozenset({"append", "extra-args"})
"""Keys whose values are not shown: command lines, which carry passwords in forms that nobody can foresee."""

_TONES = {
    DisplayState.RUNNING: OK,
    DisplayState.STOPPED: DIM,
    DisplayState.OFF: DIM,
    DisplayState.CRASH_LOOP: BAD,
    DisplayState.PANICKED: BAD,
    DisplayState.UNRESPONSIVE: BAD,
    DisplayState.FAILED: BAD,
}
"""Of states; those that are not named pass, or were asked for, and are worth a look."""


class Line(NamedTuple):
    """A line of a cell. With `at_s` (Unix time) it is the time that passed since then, and `text` is empty."""

    text: str
    tone: str = ""
    at_s: int = 0


Cell = tuple[Line, ...]
Row = tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table. Rows have a key each, which stays the same for as long as they are about the same thing."""

    id: str
    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, Row] = field(default_factory=dict)
    empty: str = "None."


@dataclass(frozen=True, slots=True)
class Published:
    """A published port of a guest; `up`: it leads there."""

    vm: str
    port: str
    proto: str
    up: bool


@dataclass(frozen=True, slots=True)
class Beside:
    """What the status does not hold: start times (Unix, s) and rates by guest, published ports."""

    started_s: Mapping[str, float] = field(default_factory=dict)
    rates: Mapping[str, GuestRates] = field(default_factory=dict)
    published: Sequence[Published] = ()


def tables_of(status: Json, beside: Beside) -> tuple[Table, ...]:
    """The page's tables of a status (`agent.core.tell.status`), in the order in which they are shown."""
    return (
        Table("host", "Host", _HOST, {"host": _host_row(status)}),
        Table("wrong", "What is wrong or worth knowing", _WRONG, dict(_wrong_rows(status)), "Nothing."),
        Table("vms", "Guests", _VMS, {vm["name"]: _vm_row(vm, beside) for vm in status["vms"]}, "No unit names one."),
        Table("nics", "NICs", _NICS, dict(_nic_rows(status))),
        Table("bridges", "Bridges", _BRIDGES, {one["name"]: _bridge_row(one) for one in status["bridges"]}),
        Table("services", "Services", _SERVICES, dict(_service_rows(status))),
        Table("published", "Published ports", _PUBLISHED, dict(_published_rows(beside.published))),
    )


def events_table(events: Iterable[Json]) -> Table:
    """The events (as JSON has them), the latest first."""
    rows = {str(event["seq"]): _event_row(event) for event in events}
    return Table("events", "Latest events", _EVENTS, dict(reversed(rows.items())))


def title_of(host: str, status: Json) -> str:
    """The title of the page's window: what can be seen of it in a row of tabs."""
    running, guests = _running(status)
    wrong = sum(1 for _ in _wrong_rows(status))
    return f"{printable(host)}: {running}/{guests} running" + (f", {counted(wrong, 'notice')}" if wrong else "")


_HOST = ("State", "Guests", "Unit files", "Findings", "Version", "Agent up for")
_WRONG = ("Where", "What", "Message", "For")
_VMS = ("Guest", "State", "Up for", "Restarts", "CPU", "IOPS", "Conditions", "Pending until its restart")
_NICS = ("NIC", "Tap", "Bridge", "Address", "MAC", "Attached", "Limits")
_BRIDGES = ("Bridge", "State", "Addresses", "Ports", "Leases", "Conditions")
_SERVICES = ("Service", "State", "Restarts")
_PUBLISHED = ("Port", "Guest", "State")
_EVENTS = ("Time (UTC)", "Resource", "What happened")


def _running(status: Json) -> tuple[int, int]:
    return sum(vm["pid"] is not None for vm in status["vms"]), len(status["vms"])


def _host_row(status: Json) -> Row:
    agent = status["agent"]
    running, guests = _running(status)
    is_quiet = all(_TONES.get(vm["state"]) in {OK, DIM} for vm in status["vms"])
    under_way = counted(len(agent["in_flight"]), "action")
    mistakes = sum(unit["state"] != "valid" for unit in status["units"])
    conditions = [one for _, holder in _holders(status) for one in holder["conditions"]]
    findings = sum(one["type"] in FINDINGS for one in conditions)
    units = counted(len(status["units"]), "file")
    return (
        _cell("settled", OK) if agent["settled"] else _cell(f"at work, {under_way}", WARN),
        _cell(f"{running} of {guests} running", OK if is_quiet else WARN),
        _cell(f"{mistakes} of {units} with mistakes", BAD) if mistakes else _cell(f"{units}, no mistake", OK),
        _cell(counted(findings, "finding"), WARN if findings else OK),
        _cell(str(agent["version"])),
        (Line("", "", _unix_s(agent["started"])),),
    )


def _holders(status: Json) -> Iterator[tuple[str, Json]]:
    yield "agent", status["agent"]
    yield from ((f"bridge/{one['name']}", one) for one in status["bridges"])
    yield from ((f"vm/{one['name']}", one) for one in status["vms"])


def _wrong_rows(status: Json) -> Iterator[tuple[str, Row]]:
    """Questions first, then mistakes in units, then conditions."""
    for one in status["agent"]["approvals"]:
        message = f"{one['why']}: {', '.join(one['guests'])}; `vmhost approve {one['id']}` allows it"
        yield f"approval {one['id']}", (_cell("agent"), _cell("ApprovalNeeded", WARN), _cell(message), ())
    for unit in status["units"]:
        yield from _unit_rows(unit)
    for _, holder in _holders(status):
        for one in holder["conditions"]:
            tone = WARN if one["type"] in FINDINGS else BAD
            what = one["type"] if one["reason"] == one["type"] else f"{one['type']} ({one['reason']})"
            key = f"condition {one['resource']} {one['type']} {one['reason']} {one['message']}"
            since = (Line("", "", _unix_s(one["since"])),) if one["since"] else ()
            yield printable(key), (_cell(one["resource"]), _cell(what, tone), _free(one["message"]), since)


def _unit_rows(unit: Json) -> Iterator[tuple[str, Row]]:
    file, state = unit["file"], unit["state"]
    if state == "held":
        yield printable(f"unit {file}"), _unit_row(file, "held", "its last good version runs on until it is mended")
    elif state == "invalid":
        yield printable(f"unit {file}"), _unit_row(file, "invalid", "nothing of it runs until it is mended")
    for error in unit["errors"]:
        where = f"{file}:{error['line']}:{error['column']}"
        hint = f" ({error['hint']})" if error["hint"] else ""
        yield printable(f"error {where} {error['problem']}"), _unit_row(where, "error", f"{error['problem']}{hint}")


def _unit_row(where: str, what: str, message: str) -> Row:
    return (_cell(where), _cell(what, BAD), _free(message), ())


def _vm_row(vm: Json, beside: Beside) -> Row:
    started_s, found = beside.started_s.get(vm["name"]), beside.rates.get(vm["name"])
    operations = found.operations_per_s if found is not None else None
    is_up = vm["pid"] is not None and started_s is not None
    return (
        _cell(vm["name"]),
        _cell(vm["state"], _TONES.get(vm["state"], WARN)),
        (Line("", "", round(started_s)),) if is_up and started_s is not None else (),
        _cell(str(vm["restarts"])),
        _cell(f"{found.cpu_ratio * 100:.0f} %") if found is not None and found.cpu_ratio is not None else (),
        _cell(f"{operations:.0f}") if operations is not None else (),
        _conditions(vm),
        tuple(Line(_change(one), WARN) for one in vm["pending"]),
    )


def _change(change: Json) -> str:
    key = change["key"]
    if HIDDEN & set(key.split(".")):
        return f"{key}: changed (`vmhost status` shows the values)"
    return f"{key}: {_value(change['from'])} → {_value(change['to'])}"


def _value(value: object) -> str:
    return _clean(str(value)) if value else "not set"


def _conditions(holder: Json) -> Cell:
    found = [(f"{one['type']} ({one['reason']}): {one['message']}", one["type"]) for one in holder["conditions"]]
    return tuple(Line(_clean(text), WARN if type_ in FINDINGS else BAD) for text, type_ in found)


def _nic_rows(status: Json) -> Iterator[tuple[str, Row]]:
    for vm in status["vms"]:
        for nic in vm["nics"]:
            rates = [(nic["rate_in"], "in"), (nic["rate_out"], "out")]
            yield (
                f"{vm['name']}/{nic['name']}",
                (
                    _cell(f"{vm['name']}/{nic['name']}"),
                    _cell(nic["tap"]),
                    _cell(nic["bridge"]),
                    tuple(Line(printable(one)) for one in nic["addresses"] or [nic["leased"]] if one),
                    _cell(nic["mac"]),
                    _attached(vm, nic),
                    tuple(Line(f"{rate} {way}") for rate, way in rates if rate),
                ),
            )


def _attached(vm: Json, nic: Json) -> Cell:
    if vm["pid"] is None:
        return _cell("guest is off", DIM)
    if nic["attached"] is None:
        return _cell("cannot be seen", WARN)
    return _cell("yes", OK) if nic["attached"] else _cell("no", BAD)


def _bridge_row(bridge: Json) -> Row:
    dhcp = bridge["dhcp"]
    state = _cell("up", OK) if bridge["up"] else _cell("down", BAD)
    return (
        _cell(bridge["name"]),
        state if bridge["in_sync"] else (*state, Line("not as its unit says", BAD)),
        tuple(Line(printable(one)) for one in bridge["addresses"]),
        _cell(", ".join(bridge["ports"])) if bridge["ports"] else (),
        _cell(f"{len(dhcp['leases'])} of {dhcp['pool_size']}") if dhcp else (),
        _conditions(bridge),
    )


def _service_rows(status: Json) -> Iterator[tuple[str, Row]]:
    for holder in (status["agent"], *status["bridges"]):
        for one in holder["services"]:
            state = _cell("running", OK) if one["running"] else _cell("not running", BAD)
            yield one["name"], (_cell(one["name"]), state, _cell(str(one["restarts"])))


def _published_rows(published: Iterable[Published]) -> Iterator[tuple[str, Row]]:
    for one in published:
        state = _cell("leads there", OK) if one.up else _cell("does not lead there", BAD)
        yield f"{one.vm} {one.port}/{one.proto}", (_cell(f"{one.port}/{one.proto}"), _cell(one.vm), state)


def _event_row(event: Json) -> Row:
    time = str(event["time"]).replace("T", " ")[:19]
    return (_cell(time), _cell(event["resource"]), _free(event["message"]))


def _cell(text: str, tone: str = "") -> Cell:
    return (Line(printable(text), tone),) if text else ()


def _free(text: str) -> Cell:
    return (Line(_clean(text)),)


@lru_cache(maxsize=4096)
def _clean(text: str) -> str:
    """A text that a person or a program wrote: on one line, and without what looks like a secret."""
    return redacted(printable(text))[0]


@lru_cache(maxsize=1024)
def _unix_s(iso: str) -> int:
    return round(datetime.fromisoformat(iso).timestamp()) if iso else 0
