"""The manual pages, from the commands' own grammar and the schema of unit files: what they say is what there is.

`python -m docs.manual FOLDER` writes them. The language is man(7).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.__main__ import parser as agent_parser
from agent.cli.main import build_parser
from agent.core.edits.effects import EFFECTS, PLUGGING
from agent.core.tell.notification_text import ENVIRONMENT, FIELDS
from agent.core.tell.notifications import WATCHED
from agent.unitfile.json_schema import json_schema
from docs import effects

EXAMPLE = """\
[bridge.br-lan]
ports = ["eth1"]
addresses = ["192.168.0.1/24"]

[vm.web]
cpus = 2
memory = "1G"
restart = "always"

[vm.web.disk.root]
path = "/srv/vm/web.qcow2"
size = "32G"

[vm.web.nic.lan]
bridge = "br-lan"
"""

TABLES = {
    "bridge.NAME": ("BridgeTable", "A bridge on the host."),
    "bridge.NAME.vlan.ID": ("HostVlanTable", "The host's own link in a VLAN of the bridge."),
    "bridge.NAME.routes": ("RouteTable", "A route of the host by a bridge; routes is a list of such tables."),
    "vlan.NAME": ("VlanTable", "A VLAN link of the host on a link that is no port."),
    "bridge.NAME.dhcp": ("DhcpTable", "A DHCP server on a bridge."),
    "bridge.NAME.dns": ("DnsTable", "A DNS server on a bridge; dns = true is such a table without keys."),
    "vm.NAME": ("VmTable", "A guest."),
    "vm.NAME.disk.ID": ("DiskTable", "A disk of a guest."),
    "vm.NAME.nic.ID": ("NicTable", "A network card of a guest."),
    "vm.NAME.serial.ID": ("SerialTable", "A serial port of a guest."),
}

FILES = {
    "/etc/vmhost.d/*.toml": "unit files, see vmhost.unit(5)",
    "/run/vmhost": "the control socket agent.sock; for each guest vms/NAME with its sockets and its log",
    "/var/lib/vmhost": "what the agent remembers: identities, intents, the good versions of unit files",
    "/usr/share/vmhost/schema.json": "the JSON Schema of unit files, for editors",
}

EXITS = {
    "0": "what was asked holds",
    "1": "it does not hold, or could not be done; one line says why",
    "2": "wrong usage",
    "3": "no agent answers",
}

AGENT_EXITS = {
    "0": "after a signal that ends it",
    "1": "it cannot start or go on; one line says why, and a later try may do better",
    "2": "wrong usage",
    "78": "no later try can do better: the state directory was written by a later version",
}

SIGNALS = {
    "SIGTERM, SIGINT": "ends the agent; guests run on, and the next agent takes them over",
    "SIGHUP": "reads the unit directory now; it is watched anyway",
}

SEE_ALSO = ("vmhost(1)", "vmhost-agent(8)", "vmhost.unit(5)", "qemu-system-x86_64(1)", "systemctl(1)")


def pages() -> Mapping[str, str]:
    """All pages by file name, as `vmhost.1`."""
    return {"vmhost.1": _command_page(), "vmhost-agent.8": _agent_page(), "vmhost.unit.5": _unit_page()}


def _command_page() -> str:
    parser = build_parser()
    (subcommands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    common = _options(parser)
    lines = [*_head("vmhost", 1, "ask the vmhost agent, or tell it")]
    lines += [".SH SYNOPSIS", ".nf", *(_usage(sub) for sub in subcommands.choices.values()), ".fi"]
    lines += [
        ".SH DESCRIPTION",
        _text(f"{parser.description} The agent is vmhost-agent(8); unit files: vmhost.unit(5)."),
    ]
    lines += [".SH COMMANDS"]
    for name, sub in subcommands.choices.items():
        lines += [f".SS {_text(name)}", _text(f"{_sentence(str(sub.description))}")]
        known = {tuple(action.option_strings) for action in common}
        own = [action for action in _actions(sub) if tuple(action.option_strings) not in known]
        lines += _described(own)
    lines += [".SH OPTIONS", _text("These stand before or after the command."), *_described(common)]
    lines += [".SH EXIT STATUS", *_listed(EXITS), ".SH FILES", *_listed(FILES), *_see_also("vmhost(1)")]
    return "\n".join(lines) + "\n"


def _agent_page() -> str:
    parser = agent_parser()
    lines = [*_head("vmhost-agent", 8, "keeps a host's bridges and guests as its unit files say")]
    lines += [".SH SYNOPSIS", ".nf", _usage(parser), ".fi", ".SH DESCRIPTION"]
    lines += [
        _text(
            "The agent makes the host what the unit files say, and keeps it so: bridges, taps and QEMU guests. It "
            "watches the unit directory, the kernel's links and every QEMU, and puts back what is lost. Its service is "
            "vmhost-agent.service; what it does is told by vmhost(1) and by the journal."
        ),
        ".PP",
        _text(
            "Guests outlive the agent. It may be restarted, killed or upgraded at any time: the next one finds every "
            "guest again, and none of them notices."
        ),
    ]
    lines += [".SH OPTIONS", *_described(_actions(parser)), ".SH SIGNALS", *_listed(SIGNALS)]
    lines += [".SH NOTIFICATIONS", *_notifications()]
    lines += [".SH EXIT STATUS", *_listed(AGENT_EXITS), ".SH FILES", *_listed(FILES), *_see_also("vmhost-agent(8)")]
    return "\n".join(lines) + "\n"


def _notifications() -> Iterator[str]:
    yield _text(
        "A command and a webhook are told of these conditions, once each, and once when they are over: "
        f"{', '.join(sorted(WATCHED))}. The same one of the same resource is told again after ten minutes at the "
        "soonest. What is above the limit is summed up in the last notification of the minute. What was told is kept "
        "over restarts. A failure is tried once more after 5 s, then `vmhost status` shows NotificationFailed."
    )
    yield ".PP"
    yield _text("The JSON that they get has these fields:")
    yield from _listed(FIELDS)
    yield ".PP"
    yield _text("A command finds in its environment, beside PATH and LC_ALL:")
    yield from _listed({name: f"the field {field}" for name, field in ENVIRONMENT.items()})
    yield ".PP"
    yield _text(
        "The command is run without a shell, in a session of its own; its process group is killed when it ends, when "
        "its time is over, and when the agent ends. Under vmhost-agent.service it is confined as the agent is, and "
        "neither it nor a webhook reaches another host: /usr/share/doc/vmhost/notify.conf is a drop-in that allows it."
    )


def _unit_page() -> str:
    schema = json_schema()
    lines = [*_head("vmhost.unit", 5, "unit files of vmhost: bridges and guests")]
    lines += [".SH SYNOPSIS", _text("/etc/vmhost.d/*.toml"), ".SH DESCRIPTION"]
    lines += [
        _text(
            "A unit is one TOML file, a resource is one table in it. Any file may hold any number of tables; a name is "
            "unique among all files. Sizes are written as 512M or 32G (powers of two), durations as 90s or 1h. Unknown "
            "keys are mistakes. A file with a mistake changes nothing: its last good version holds."
        ),
        ".PP",
        _text("`vmhost check` says what is wrong, of all files at once, with line and column."),
    ]
    for table, (name, text) in TABLES.items():
        lines += [f".SH {_text(f'[{table}]')}", _text(text)]
        properties = schema["$defs"][name]["properties"]
        required = schema["$defs"][name].get("required", [])
        for key, value in properties.items():
            if "patternProperties" not in value:
                lines += [".TP", f"\\fB{_text(key)}\\fR = {_text(_shape(value))}", _about(value, key in required)]
    lines += [".SH EDITS OF A RUNNING GUEST", _text(effects.PENDING), *_listed(effects.MEANINGS), *_effects()]
    lines += [".SH EXAMPLES", ".nf", ".RS", *map(_text, EXAMPLE.splitlines()), ".RE", ".fi"]
    lines += [".PP", _text("More are in /usr/share/doc/vmhost/examples; `vmhost init NAME` writes one.")]
    lines += [*_see_also("vmhost.unit(5)")]
    return "\n".join(lines) + "\n"


def _effects() -> Iterator[str]:
    """What editing each key does, by table."""
    for table, name in effects.TABLES.items():
        yield f".SS {_text(f'[{name}]')}"
        if table in PLUGGING:
            yield _text(f"A whole table that is added or removed: {PLUGGING[table]}.")
        for key, one in EFFECTS[table].items():
            yield ".TP"
            yield f"\\fB{_text(key)}\\fR ({one.effect})"
            yield _text(f"{_sentence(one.says)}")


def _shape(value: Mapping[str, Any]) -> str:
    """What a key's value looks like."""
    if "enum" in value:
        return " | ".join(f'"{choice}"' for choice in value["enum"])
    if "anyOf" in value or "$ref" in value:
        return "true | false | table" if "anyOf" in value else "table"
    if value["type"] == "array":
        return "array of strings"
    if value["type"] == "integer" and {"minimum", "maximum"} <= value.keys():
        return f"{value['minimum']} to {value['maximum']}"
    types = value["type"] if isinstance(value["type"], list) else [value["type"]]
    return " | ".join("true | false" if kind == "boolean" else str(kind) for kind in types)


def _about(value: Mapping[str, Any], required: bool) -> str:
    default = value.get("default")
    shown = str(default).lower() if isinstance(default, bool) else default
    tail = " Required." if required else f" Default: {shown}." if shown is not None else ""
    return _text(_sentence(str(value["description"]), names=value.get("enum", ())) + tail)


def _head(name: str, section: int, purpose: str) -> Iterator[str]:
    version = importlib.metadata.version("vmhost")
    yield f'.TH {_text(name).upper()} {section} "" "vmhost {version}" "vmhost"'
    yield ".nh"  # names and keys must not be torn apart
    yield ".SH NAME"
    yield f"{_text(name)} \\- {_text(purpose)}"


def _usage(parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(prog=parser.prog, width=10_000)
    formatter.add_usage(parser.usage, _without_common(parser), [], prefix="")
    return _text(formatter.format_help().strip())


def _without_common(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments that a subcommand's usage shows: those that every subcommand has are told once."""
    if parser.prog == "vmhost-agent":
        return _actions(parser)
    common = {tuple(action.option_strings) for action in _options(build_parser())}
    return [action for action in _actions(parser) if tuple(action.option_strings) not in common]


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in _actions(parser) if action.option_strings]


def _described(actions: Sequence[argparse.Action]) -> Iterator[str]:
    for action in actions:
        if action.help is None and not action.option_strings and action.choices is None:
            continue
        yield ".TP"
        yield _name_of(action)
        text = (action.help or "").replace("%(default)s", str(action.default))
        choices = f"one of: {', '.join(map(str, action.choices))}" if action.choices else ""
        yield _text(_sentence("; ".join(part for part in (text, choices) if part) or "see vmhost.unit(5)"))


def _name_of(action: argparse.Action) -> str:
    value = str(action.metavar or action.dest.upper())
    if not action.option_strings:
        return f"\\fI{_text(value)}\\fR"
    names = ", ".join(f"\\fB{_text(option)}\\fR" for option in action.option_strings)
    return names if action.nargs == 0 else f"{names} \\fI{_text(value)}\\fR"


def _listed(entries: Mapping[str, str]) -> Iterator[str]:
    for name, text in entries.items():
        yield ".TP"
        yield f"\\fB{_text(name)}\\fR"
        yield _text(_sentence(text))


def _see_also(here: str) -> Iterator[str]:
    yield ".SH SEE ALSO"
    names = [page for page in SEE_ALSO if page != here]
    for name in names:
        page, section = name.removesuffix(")").split("(")
        yield f".BR {_text(page)} ({section}){',' if name != names[-1] else ''}"


def _sentence(text: str, *, names: Collection[str] = ()) -> str:
    """A help text as a sentence; one that begins with a name or a number stays as it is."""
    first = re.match(r"[a-z]+(?=[ ,;])", text)
    begun = text[:1].upper() + text[1:] if first and first[0] not in names else text
    return begun if begun.endswith((".", "?")) else f"{begun}."


def _text(text: str) -> str:
    """Plain text for roff: no character of it is a command (groff_char(7): \\- is the minus that can be copied)."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    escaped = escaped.replace("^", "\\(ha").replace("~", "\\(ti")
    return re.sub(r"^(?=[.'])", r"\\&", escaped)


if __name__ == "__main__":
    for page, text in pages().items():
        Path(sys.argv[1], page).write_text(text)
