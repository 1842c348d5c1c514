"""The host's whole firewall, whoever made it: nftables by nft(8), and iptables from before it by its own tools."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.core.doctor.rules import Ruleset, parse_legacy, parse_ruleset
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
        rules = Ruleset((*rules.chains, *parse_legacy(text, family).chains), rules.sets)
    return Listing(rules, frozenset(tool for tool in TOOLS if shutil.which(tool)))


def _nftables() -> Ruleset:
    text = _nft("-j", "list", "ruleset")
    terse = len(text) > MAX_BYTES
    if terse:  # what is in sets is most of it as a rule; without it, what they decide is not certain
        text = _nft("-j", "-t", "list", "ruleset")
    if len(text) > MAX_BYTES:
        raise ObservationError("nft", f"the rules are {len(text) >> 20} MiB, more than it looks at")
    try:
        found = parse_ruleset(json.loads(text))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
        raise ObservationError("nft", f"its listing cannot be read: {e!r}") from e
    return Ruleset(found.chains) if terse else found


def _find(tool: str, package: str) -> str:
    path = shutil.which(tool)
    if path is None:
        raise ObservationError(tool, f"is not installed, so its rules are not known; apt install {package}")
    return path


def _nft(*arguments: str) -> str:
    path = _find("nft", "nftables")
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=LIST_S, env=_ENVIRONMENT)  # noqa: PLW1510 - it is looked at
    except subprocess.TimeoutExpired as e:
        raise ObservationError("nft", f"did not end within {LIST_S:g} s") from e
    except OSError as e:
        raise ObservationError("nft", f"{path}: {e.strerror}") from e
    if done.returncode != 0:
        raise ObservationError("nft", done.stderr.strip()[:300] or f"exit {done.returncode}")
    return done.stdout
