"""The one haproxy of the host: TCP ports that are published over IPv6, carried to guests that have IPv4 addresses only.

In master-worker mode: at SIGUSR2 the master reads its configuration again and starts a new worker, which takes the
listening sockets over from the former one; that lets its connections end by themselves (haproxy's management guide, 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.core.routing.firewall_wanted import Forward
from agent.core.services.spec import RUN_DIR, FileEffect, ServiceFile, ServiceSpec, service_resource

PROGRAM = NAME = "haproxy"
RESOURCE = service_resource(NAME)
CONF = "haproxy.cfg"
OLD_CONNECTIONS_MIN = 30
"""So long a connection lasts that began before the last reload."""
OLD_WORKERS = 50
"""A worker that is left from before so many reloads is ended."""
MOST_CONNECTIONS = 4096
IDLE_DAYS = 5
"""As the kernel keeps an established connection that is silent (nf_conntrack-sysctl.rst)."""


@dataclass(frozen=True, slots=True)
class Listening:
    """A forward, and where haproxy listens for it: addresses of the host, each with its first and its last port."""

    forward: Forward
    at: tuple[tuple[str, int, int], ...]


def carries(forward: Forward) -> str:
    """What the service shows of a forward that it carries."""
    return f"{forward.vm} {forward.text}"


def proxy_spec(listening: Iterable[Listening]) -> ServiceSpec:
    """The service that carries these forwards."""
    listening = sorted(listening, key=lambda one: (one.forward.vm, one.forward.what.first, one.forward.text))
    conf = f"{RUN_DIR}/{CONF}"
    return ServiceSpec(
        name=NAME,
        owner=RESOURCE,
        program=PROGRAM,
        # In the foreground, so that its end is seen, and yet with a master.
        argv=("-W", "-db", "-f", conf),
        test=("-c", "-f", conf),
        files=(ServiceFile(CONF, "".join(f"{line}\n" for line in _conf(listening)), FileEffect.RELOAD),),
        capabilities=("net_bind_service",),
        reload_signal="SIGUSR2",
        started="Loading success.",
        shown=tuple((carries(one.forward), target_of(one.forward)) for one in listening),
        reloading="Reloading HAProxy",
        reloaded="Loading success.",
        not_reloaded="Loading failure!",
        complaint="[ALERT]",
    )


def _conf(listening: Iterable[Listening]) -> Iterator[str]:
    """Whatever the limit of open files is, it starts; with a lower one it takes fewer connections at once."""
    yield "# Made by vmhost-agent for published ports; whatever is written here is lost."
    yield "global"
    yield f"    maxconn {MOST_CONNECTIONS}"
    yield "    no strict-limits"
    yield f"    hard-stop-after {OLD_CONNECTIONS_MIN}m"
    yield f"    mworker-max-reloads {OLD_WORKERS}"
    yield "defaults"
    yield "    mode tcp"
    yield "    option tcpka"
    yield "    timeout connect 5s"
    yield f"    timeout client {IDLE_DAYS}d"
    yield f"    timeout server {IDLE_DAYS}d"
    for one in (one for one in listening if one.at):
        forward, what = one.forward, one.forward.what
        yield f"listen {forward.vm}:{_ports(what.first, what.last)}{f':{what.address}' if what.address else ''}"
        for address, first, last in one.at:
            yield f"    bind ipv6@[{address}]:{_ports(first, last)} v6only"
        yield f"    server guest {target_of(forward)}"


def _ports(first: int, last: int) -> str:
    return f"{first}-{last}" if last != first else str(first)


def target_of(forward: Forward) -> str:
    """Where the service carries a forward to; without a port it is the one that was asked for."""
    return forward.target if forward.what.is_range else f"{forward.target}:{forward.what.guest_port}"
