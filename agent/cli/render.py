"""The status and the events as a person reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TextIO

from agent.cli.client import Json
from agent.cli.tables import write_line, write_table
from agent.core.text import counted


def write_status(out: TextIO, status: Json) -> None:
    """Write a status: one line on the agent, what asks for an answer, tables, then what stands in the way."""
    write_line(out, _headline(status))
    for approval in status["agent"]["approvals"]:
        guests = ", ".join(approval["guests"])
        write_line(out, f"needs an answer: {approval['why']}: {guests}; `vmhost approve {approval['id']}` allows it")
    for line in unit_lines(status["units"]):
        write_line(out, line)
    if status["bridges"]:
        out.write("\n")
        rows = [_bridge_row(bridge) for bridge in status["bridges"]]
        write_table(out, ("BRIDGE", "STATE", "ADDRESSES", "PORTS"), rows)
    if status["vms"]:
        out.write("\n")
        rows = [_vm_row(vm) for vm in status["vms"]]
        write_table(out, ("VM", "STATE", "PID", "RESTARTS", "NICS", "PENDING"), rows)
    lines = [*_condition_lines(status), *_pending_lines(status)]
    if lines:
        out.write("\n")
    for line in lines:
        write_line(out, line)


def write_event(out: TextIO, event: Json) -> None:
    """Write one event as a line."""
    write_line(out, f"{event['time']}  {event['resource'] or '-'}  {event['message']}")


def write_pending(out: TextIO, status: Json) -> None:
    """Write, for each guest, what waits for its restart."""
    for line in _pending_lines(status):
        write_line(out, line)


def _pending_lines(status: Json) -> Iterator[str]:
    for vm in status["vms"]:
        for change in vm["pending"]:
            text = f"vm/{vm['name']}: {change['key']} is {_value(change['from'])}, its unit says {_value(change['to'])}"
            effect = "another guest in its place; " if change["effect"] == "replace" else ""
            cost = f"{effect}{change['outage']}"
            yield f"{text}; its own reboot or `vmhost restart {vm['name']}` applies it ({cost})"


def why_not(status: Json, name: str | None) -> str:
    """The first thing that stands in the way of a guest, or of anything; empty when nothing is known."""
    found = [text for owner, text in _conditions(status) if name is None or owner == f"vm/{name}"]
    if found:
        return found[0]
    under_way = [f"{one['action']} {one['resource']}" for one in status["agent"]["in_flight"]]
    return ", ".join(under_way[:3])


def _headline(status: Json) -> str:
    agent = status["agent"]
    under_way = counted(len(agent["in_flight"]), "action")
    state = "settled" if agent["settled"] else f"not settled, {under_way} under way"
    return f"{state}; vmhost {agent['version']}, pid {agent['pid']}, since {agent['started']}"


def unit_lines(units: Sequence[Json]) -> Iterator[str]:
    """What is wrong with unit files, a line for each file and each mistake."""
    for unit in units:
        if unit["state"] == "held":
            yield f"{unit['file']}: held: its last good version runs on until it is mended"
        elif unit["state"] == "invalid":
            yield f"{unit['file']}: invalid: nothing of it runs until it is mended"
        for error in unit["errors"]:
            hint = f" ({error['hint']})" if error["hint"] else ""
            yield f"{unit['file']}:{error['line']}:{error['column']}: error: {error['problem']}{hint}"


def _bridge_row(bridge: Json) -> tuple[str, ...]:
    state = "ok" if bridge["in_sync"] and bridge["up"] else "deviating"
    return (bridge["name"], state, " ".join(bridge["addresses"]), " ".join(bridge["ports"]))


def _vm_row(vm: Json) -> tuple[str, ...]:
    nics = " ".join(f"{nic['name']}:{nic['bridge']}{_address(nic)}{_attachment(vm, nic)}" for nic in vm["nics"])
    pending = " ".join(change["key"] for change in vm["pending"])
    return (vm["name"], vm["state"], str(vm["pid"] or ""), str(vm["restarts"]), nics, pending)


def _address(nic: Json) -> str:
    return f"={nic['address']}" if nic.get("address") else ""


def _attachment(vm: Json, nic: Json) -> str:
    return "(detached)" if vm["pid"] is not None and nic["attached"] is False else ""


def _condition_lines(status: Json) -> Iterator[str]:
    for owner, text in _conditions(status):
        yield f"{owner}: {text}" if owner else text


def _conditions(status: Json) -> Iterator[tuple[str, str]]:
    """All conditions with the resource of which they are told (the guest's for its taps and disks)."""
    holders = [("", status["agent"])]
    holders += [(f"bridge/{bridge['name']}", bridge) for bridge in status["bridges"]]
    holders += [(f"vlan/{vlan['name']}", vlan) for vlan in status.get("vlans", [])]
    holders += [(f"vm/{vm['name']}", vm) for vm in status["vms"]]
    for owner, holder in holders:
        for one in holder["conditions"]:
            where = "" if one["resource"] == owner else f"{one['resource']}: "
            yield owner, f"{where}{one['type']}: {one['message']} (since {one['since']})"


def _value(value: object) -> str:
    """A value of a unit as it is written there; an empty one is not written at all."""
    return f'"{value}"' if value else "not set"
