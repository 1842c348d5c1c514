"""Where the kernel forwards packets: /proc/sys/net (ip-sysctl.rst), in the network namespace of the calling thread.

Changes of forwarding are heard as NEWNETCONF (rtnetlink(7), linux/netconf.h); `accept_ra` changes in silence.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from agent.core.errors import ObservationError, PermanentError, TransientError
from agent.core.routing.firewall import ForwardingState

ROOT = Path("/proc/sys/net")
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETCONF_GROUPS = (24, 25)
"""RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF (linux/rtnetlink.h)."""

_READ_ONLY = 30


def look_at_forwarding(links: Iterable[str], *, by_link6: bool = True) -> ForwardingState:
    """What the kernel forwards of what comes in by these links, in 0.1 ms for each. Raises ObservationError.

    A link that has no parameters, because it is gone or has no IPv6, is left out. `by_link6` False: as a kernel before
    6.17, which has no `force_forwarding`.
    """
    names = tuple(links)
    try:
        all4 = _read("ipv4/conf/all/forwarding")
        all6 = _read("ipv6/conf/all/forwarding")
    except OSError as e:
        raise ObservationError("sysctl", f"{e.filename}: {e.strerror}") from e
    has_force = by_link6 and (ROOT / "ipv6/conf/all/force_forwarding").exists()
    links6 = {name: value == 1 for name, value in _of("ipv6", "force_forwarding", names)} if has_force else None
    return ForwardingState(
        all4=all4 == 1,
        all6=all6 == 1,
        links4={name: value == 1 for name, value in _of("ipv4", "forwarding", names)},
        links6=links6,
        accept_ra=dict(_of("ipv6", "accept_ra", names)),
    )


def _of(family: str, key: str, names: Iterable[str]) -> Iterable[tuple[str, int]]:
    for name in names:
        try:
            value = _read(f"{family}/conf/{name}/{key}")
        except OSError:
            continue
        if value is not None:
            yield name, value


def _read(name: str) -> int | None:
    """A parameter; None where there is no such one, as without IPv6."""
    try:
        return int((ROOT / name).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def read_parameters(names: Iterable[str]) -> dict[str, int]:
    """The parameters of these names below `net`, in 0.02 ms each; what is not there, or no number, is left out."""
    found: dict[str, int] = {}
    for name in names:
        try:
            value = _read(name)
        except OSError:
            continue
        if value is not None:
            found[name] = value
    return found


def change_sysctls(settings: Iterable[tuple[str, str]]) -> None:
    """Set parameters in their order, each as a name below `net` and its value.

    `PermanentError` where the kernel, or the service's confinement, does not let us; `TransientError` where a link went
    meanwhile. What came before one that fails stays set.
    """
    for name, value in settings:
        path = ROOT / name
        try:
            path.write_text(value)
        except FileNotFoundError as e:
            raise TransientError(f"{path} is gone: its link went", reason="Gone") from e
        except OSError as e:
            hint = "; the agent's service needs ReadWritePaths=/proc/sys/net" if e.errno in {_READ_ONLY, 13} else ""
            raise PermanentError(f"{path}: {e.strerror}{hint}", reason="ForwardingOff") from e


def look_at_settings(names: Iterable[str]) -> dict[str, int]:
    """Parameters below `net` that are whole numbers, in 0.02 ms each; those that are not there are left out.

    Raises ObservationError for one that is there and cannot be read.
    """
    found: dict[str, int] = {}
    for name in names:
        try:
            value = _read(name)
        except OSError as e:
            if e.errno == errno.EINVAL:  # its link is just going
                continue
            raise ObservationError("sysctl", f"{e.filename}: {e.strerror}") from e
        if value is not None:
            found[name] = value
    return found


async def watch_forwarding(changed: Callable[[], None]) -> None:
    """Call `changed` whenever forwarding may have changed, until cancelled. Raises ObservationError."""
    try:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        events = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        events.bind((0, 0))
        for group in NETCONF_GROUPS:
            events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    except OSError as e:
        raise ObservationError("sysctl", f"changes of forwarding cannot be heard: {e}") from e
    loop = asyncio.get_running_loop()
    with events:
        loop.add_reader(events.fileno(), _drain, events, changed)
        try:
            await asyncio.Event().wait()
        finally:
            loop.remove_reader(events.fileno())


def _drain(events: socket.socket, changed: Callable[[], None]) -> None:
    """Read what is there, which is not believed but looked after; lost events (ENOBUFS) are a change as well."""
    for _ in range(64):
        try:
            events.recv(64 * 1024)
        except BlockingIOError:
            break
        except OSError:
            continue
    changed()
