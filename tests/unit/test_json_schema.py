"""The JSON Schema: it takes what the check takes, and it refuses what one value alone makes wrong."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from agent.unitfile import schema
from agent.unitfile.json_schema import TEXTS, json_schema
from agent.unitfile.parse import parse_unit
from docs import manual

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "units").rglob("*.toml"))
SCHEMA = json_schema()
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
TOLD = {"type", "$schema", "$defs", "title", "description", "default"}


def mistakes(value: Any, rule: dict[str, Any], where: str = "") -> list[str]:
    """The part of JSON Schema that ours is made of; an unknown keyword fails the test."""
    if "$ref" in rule:
        return mistakes(value, SCHEMA["$defs"][rule["$ref"].removeprefix("#/$defs/")], where)
    kinds = rule.get("type", [])
    if "type" in rule and type(value) not in [TYPES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)]:
        return [f"{where} type"]
    found: list[str] = []
    for keyword, wanted in rule.items():
        match keyword:
            case "properties" | "patternProperties":
                for key in value:
                    for one in rules_for(key, rule):
                        found += mistakes(value[key], one, f"{where}.{key}")
            case "additionalProperties":
                assert wanted is False
                found += [f"{where} {key} unknown" for key in value if not rules_for(key, rule)]
            case "anyOf":
                found += [] if any(not mistakes(value, one, where) for one in wanted) else [f"{where} anyOf"]
            case "items":
                for item in value:
                    found += mistakes(item, wanted, f"{where}[]")
            case _ if keyword not in TOLD:
                found += [] if holds(keyword, wanted, value) else [f"{where} {keyword}"]
    return found


def rules_for(key: str, rule: dict[str, Any]) -> list[dict[str, Any]]:
    named = [rule["properties"][key]] if key in rule.get("properties", {}) else []
    return named + [one for pattern, one in rule.get("patternProperties", {}).items() if re.search(pattern, key)]


def holds(keyword: str, wanted: Any, value: Any) -> bool:
    match keyword:
        case "required":
            return set(wanted) <= set(value)
        case "enum":
            return value in wanted
        case "pattern":
            return not isinstance(value, str) or re.search(wanted, value) is not None
        case "minimum":
            return bool(value >= wanted)
        case "maximum":
            return bool(value <= wanted)
        case "minItems" | "maxItems":
            return bool(len(value) >= wanted) if keyword == "minItems" else bool(len(value) <= wanted)
        case "uniqueItems":
            return not (wanted and isinstance(value, list)) or len(set(value)) == len(value)
    raise AssertionError(keyword)


def readme_unit() -> str:
    return (ROOT / "README.md").read_text().split("```toml\n")[1].split("```")[0]


@pytest.mark.parametrize("text", [*(path.read_text() for path in UNITS), readme_unit()])
def test_what_is_shipped_is_taken(text: str) -> None:
    assert not parse_unit("u.toml", text.encode()).errors
    assert mistakes(tomllib.loads(text), SCHEMA) == []


EVERY_KEY = """
[bridge.br0]
ports = ["eth0"]
addresses = ["10.0.0.1/24"]
mac = "52:54:00:AB:34:56"
mtu = 1500
stp = true
adopt = false
dhcp = { range = ["10.0.0.100", "10.0.0.150"], lease = "3d" }
dns = { upstream = ["9.9.9.9"], domain = "lan" }
[bridge.br1]
addresses = ["10.0.1.1/24"]
dns = true
[vm.Web_1]
cpus = 2
memory = "1G"
machine = "pc"
cpu = "max"
accel = "kvm"
kernel = "/k"
initrd = "/i"
append = "x"
extra-args = ["-device", "a", "-device", "b"]
vnc = "[::1]:7"
restart = "always"
stop-timeout = "5m"
after = ["vm:a"]
description = "d"
enabled = true
uuid = "6B6c4b0e-1d2f-4c58-9d1b-2f6c5d0a7e11"
[vm.Web_1.disk.root]
path = "/d.img"
size = "1T"
format = "raw"
cache = "none"
read-only = false
discard = false
[vm.Web_1.disk.cd]
media = "cdrom"
bus = "virtio"
[vm.Web_1.nic.lan]
bridge = "br0"
mac = "52:54:00:12:34:56"
tap = "t0"
model = "e1000"
mtu = 9000
"""


def test_every_key_at_once_is_taken() -> None:
    assert not parse_unit("u.toml", EVERY_KEY.encode()).errors
    assert mistakes(tomllib.loads(EVERY_KEY), SCHEMA) == []


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("[bridge.br0]\nadresses = []", ".bridge.br0 adresses unknown"),
        ("[bridge.br0]\nmtu = 9", ".bridge.br0.mtu minimum"),
        ("[bridge.br0]\ndhcp = {}", ".bridge.br0.dhcp required"),
        ('[bridge.br0]\ndhcp = { range = ["10.0.0.2"] }', ".bridge.br0.dhcp.range minItems"),
        ('[bridge.br0]\ndns = "true"', ".bridge.br0.dns anyOf"),
        ('[bridge.br0]\nmtu = "9"', ".bridge.br0.mtu type"),
        ('[bridge.br0]\nports = ["a", "a"]', ".bridge.br0.ports uniqueItems"),
        ('[bridge.br0]\nmac = "52-54-00-12-34-56"', ".bridge.br0.mac pattern"),
        ("[bridge.longer-than-15-bytes]", ".bridge longer-than-15-bytes unknown"),
        ('[vm."bad name"]', ".vm bad name unknown"),
        ("[vm.web]\nmemory = 512", ".vm.web.memory type"),
        ('[vm.web]\nmemory = "512MB"', ".vm.web.memory pattern"),
        ('[vm.web]\nuuid = "6b6c4b0e-1d2f-4c58-9d1b-2f6c5d0a7e1"', ".vm.web.uuid pattern"),
        ('[vm.web]\nrestart = "alwys"', ".vm.web.restart enum"),
        ('[vm.web]\nafter = ["web"]', ".vm.web.after[] pattern"),
        ('[vm.web.nic.lan]\nmodel = "virtio"', ".vm.web.nic.lan anyOf"),
        ('[vm.web]\nvnc = "10.0.0.1:1"', ".vm.web.vnc pattern"),
        ("[vm.web]\nvnc = 1", ".vm.web.vnc type"),
        ('[vm.web.disk.cd]\nmedia = "dvd"', ".vm.web.disk.cd.media enum"),
        ('[vm.web.disk.Root]\npath = "/d.img"', ".vm.web.disk Root unknown"),
        ("[network.lan]", " network unknown"),
    ],
)
def test_what_one_value_makes_wrong_is_refused(line: str, mistake: str) -> None:
    assert parse_unit("u.toml", line.encode()).errors
    assert mistake in mistakes(tomllib.loads(line), SCHEMA)


def test_defaults_are_written_as_in_a_unit() -> None:
    defaults = "\n".join(
        f"{key} = {json.dumps(one['default'])}"
        for key, one in SCHEMA["$defs"]["VmTable"]["properties"].items()
        if "default" in one
    )
    unit = parse_unit("u.toml", f"[vm.web]\n{defaults}\n".encode())
    assert (unit.errors, unit.vms["web"]) == ((), schema.VmTable())
    assert 'memory = "512M"' in defaults


def test_every_key_says_what_it_is_for() -> None:
    tables = (
        schema.UnitFile,
        schema.BridgeTable,
        schema.HostVlanTable,
        schema.VlanTable,
        schema.DhcpTable,
        schema.DnsTable,
        schema.RouteTable,
        schema.VmTable,
        schema.DiskTable,
        schema.NicTable,
        schema.SerialTable,
    )
    assert {table.__name__: set(schema.keys_of(table)) for table in tables} == {
        name: set(texts) for name, texts in TEXTS.items()
    }


def test_shipped_units_name_the_schema_that_is_shipped() -> None:
    shipped = ROOT / "units" / "schema.json"
    assert json.loads(shipped.read_text()) == SCHEMA, "vmhost schema > units/schema.json"
    for path in UNITS:
        first = path.read_text().splitlines()[0]
        assert (path.parent / first.removeprefix("#:schema ")).resolve() == shipped, path


def test_the_manual_has_every_table() -> None:
    assert sorted(name for name, _ in manual.TABLES.values()) == sorted(SCHEMA["$defs"])
