"""The host's whole firewall, whoever made it: nftables by nft(8), and iptables from before it by its own tools."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.core.doctor.rules import Ruleset, parse_legacy, parse_ruleset
from agent.core.doctor.states import has_untold_states, parse_states, with_states
from agent.core.errors import ObservationError

LIST_S = 5.0
MAX_BYTES = 8 << 20
"""Some 20,000 rules. Reading more as JSON would hold the whole agent up for a tenth of a second."""

TOOLS = ("iptables", "iptables-nft", "ip6tables", "ip6tables-nft", "ufw", "firewall-cmd")
_LEGACY = {"ip": ("ip_tables_names", "iptables-legacy-save"), "ip6": ("ip6_tables_names", "ip6tables-legacy-save")}
_ENVIRONMENT = {"LC_ALL": "C"}


@dataclass(frozen=True, slots=True)
class Listing:
    """All foreign rules, and which tools for them are installed."""

    rules: Ruleset
    tools: frozenset[str]


def legacy_commands() -> Mapping[str, Sequence[str]]:
    """By family, the command that saves the rules of iptables-legacy, where the calling thread's network namespace has
    any. They are read by a raw socket (CAP_NET_RAW), beside the agent. Raises ObservationError."""
    commands = {}
    for family, (names, tool) in _LEGACY.items():
        try:
            tables = Path("/proc/thread-self/net", names).read_text().split()
        except FileNotFoundError:  # the kernel has no such iptables, or nobody ever used it
            continue
        except OSError as e:
            raise ObservationError("iptables", f"/proc/net/{names}: {e.strerror}") from e
        if tables:
            commands[family] = (_find(tool, "iptables"),)
    return commands


def list_rules(saved: Mapping[str, str]) -> Listing:
    """What there is now, in the network namespace of the calling thread, with what `legacy_commands` saved, by family.
    Blocks for milliseconds, 10 s at the worst.

    Raises ObservationError where part of it cannot be known: then nothing is certain.
    """
    rules = _nftables()
    for family, text in saved.items():
        try:
            rules = Ruleset((*rules.chains, *parse_legacy(text, family).chains), rules.sets)
        except (ValueError, IndexError) as e:
            raise ObservationError("iptables", f"what its save tool wrote cannot be read: {e}") from e
    return Listing(rules, frozenset(tool for tool in TOOLS if shutil.which(tool)))


_LAST: list[tuple[str, bool, Ruleset]] = [("", False, Ruleset())]
"""The last listing and what it says: without counters (`-s`) it is mostly the same, and reading it takes long."""


def _nftables() -> Ruleset:
    try:
        text, terse = _words("-j", "-s"), False
    except _TooMuchError:  # what is in sets is most of it as a rule; without it, what they decide is not certain
        text, terse = _words("-j", "-s", "-t"), True
    if (text, terse) != _LAST[0][:2]:
        rules = _parsed(text)
        _LAST[0] = text, terse, Ruleset(rules.chains) if terse else rules
    found = _LAST[0][2]
    return with_states(found, parse_states(_words("-a", "-s", "-t"))) if has_untold_states(found) else found


def _parsed(text: str) -> Ruleset:
    try:
        return parse_ruleset(json.loads(text))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
        raise ObservationError("nft", f"its listing cannot be read: {e!r}") from e


def _find(tool: str, package: str) -> str:
    path = shutil.which(tool)
    if path is None:
        raise ObservationError(tool, f"is not installed, so its rules are not known; apt install {package}")
    return path


class _TooMuchError(ObservationError):
    """There is more than is read, or it takes longer than it may."""


def _words(*options: str) -> str:
    """The rules as nft writes them; no more of it than `MAX_BYTES` is ever held."""
    path = _find("nft", "nftables")
    until_s = time.monotonic() + LIST_S
    try:
        with (
            open(os.memfd_create("vmhost-nft-errors"), "w+b", buffering=0) as errors,
            subprocess.Popen(
                [path, *options, "list", "ruleset"], stdout=subprocess.PIPE, stderr=errors, env=_ENVIRONMENT
            ) as process,
        ):
            try:
                output = _read(process, until_s)
            except BaseException:
                process.kill()
                raise
            code = process.wait()
            errors.seek(0)
            said = errors.read(300).decode(errors="replace").strip()
    except OSError as e:
        raise ObservationError("nft", f"{path}: {e.strerror}") from e
    if code != 0:
        raise ObservationError("nft", said or f"exit {code}")
    return output.decode(errors="replace")


def _read(process: subprocess.Popen[bytes], until_s: float) -> bytes:
    assert process.stdout is not None, "it is a pipe"
    found = bytearray()
    (poll := select.poll()).register(number := process.stdout.fileno(), select.POLLIN)
    while poll.poll(max(0.0, until_s - time.monotonic()) * 1000):
        part = os.read(number, 1 << 18)
        if not part:
            return bytes(found)
        found += part
        if len(found) > MAX_BYTES:
            raise _TooMuchError("nft", f"the rules are more than the {MAX_BYTES >> 20} MiB that it looks at")
    raise _TooMuchError("nft", f"did not end within {LIST_S:g} s")
