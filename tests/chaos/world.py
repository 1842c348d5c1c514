"""The world as it is, seen past the agent: links as `ip` tells them, processes as /proc does."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.netns import ip_output


@dataclass(frozen=True, slots=True)
class Link:
    """A link; `told` is everything that `ip` says of it, less what changes by itself."""

    name: str
    up: bool
    mtu: int
    mac: str
    master: str | None
    alias: str
    kind: str
    addresses: frozenset[str]
    told: str


@dataclass(frozen=True, slots=True)
class World:
    """Links by name, and the pids of living QEMU processes by the name of their guest."""

    links: Mapping[str, Link]
    pids: Mapping[str, tuple[int, ...]]


def look(run_dir: Path) -> World:
    """Look at the network namespace of the caller and at the QEMUs of one run directory."""
    links = (_link(raw) for raw in json.loads(ip_output("-j -d addr show")))
    return World({link.name: link for link in links}, qemu_pids(run_dir))


def _link(raw: dict[str, Any]) -> Link:
    addresses = [a for a in raw.get("addr_info", []) if a["family"] == "inet"]
    return Link(
        name=raw["ifname"],
        up="UP" in raw["flags"],
        mtu=raw["mtu"],
        mac=raw["address"],
        master=raw.get("master"),
        alias=raw.get("ifalias", ""),
        kind=raw.get("linkinfo", {}).get("info_kind", ""),
        addresses=frozenset(f"{a['local']}/{a['prefixlen']}" for a in addresses),
        told=json.dumps(_still(raw), sort_keys=True),
    )


def _still(raw: Any) -> Any:
    """What `ip` says, without timers and lifetimes."""
    if isinstance(raw, dict):
        return {key: _still(value) for key, value in raw.items() if not key.endswith(("_timer", "_life_time"))}
    return [_still(value) for value in raw] if isinstance(raw, list) else raw


def qemu_pids(run_dir: Path) -> dict[str, tuple[int, ...]]:
    """The living QEMU processes of a run directory; an ended one that nobody reaped has no command line any more."""
    mark = str(run_dir).encode()
    found: dict[str, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if b"qemu-system" in words[0] and any(mark in word for word in words):
                    name = words[words.index(b"-name") + 1].decode().removeprefix("guest=")
                    found.setdefault(name, []).append(int(folder.name))
    return {name: tuple(pids) for name, pids in found.items()}


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def descriptors(pid: int) -> Counter[str]:
    """What a process has open, by kind."""
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found[os.readlink(entry).partition("[")[0].partition(":")[0]] += 1
    return found


def rss_mib(pid: int) -> float:
    """How much memory a process has resident."""
    lines: Iterable[str] = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))
