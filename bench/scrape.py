"""What it costs to look at two hundred guests every ten seconds, and how long a scrape takes meanwhile."""

from __future__ import annotations

import asyncio
import http.client
import time
from collections.abc import Iterator
from dataclasses import dataclass

from agent.host.processes import cpu_seconds, resident_bytes
from bench.figures import Figure
from bench.host import bare_unit, fresh_agent, pids, start, status
from bench.libvirt_peer import Taken, compared
from tests.agent_process import AgentProcess
from tests.measuring import measuring

GUESTS = 200
REST_S = 60.0
"""Six looks at each guest, of which one is slow, and two full looks of the agent."""

SCRAPE_EVERY_S = 0.5
INTERVAL_S = 10.0
UNSCRAPED_S = 30.0
"""Three looks at each guest."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """Of a real agent: percent of a core, megabytes in RAM, and what each scrape took and brought."""

    cpu_percent: float
    cpu_s: float
    """Of all that it does in ten seconds with one scrape in them."""

    resident_mb: float
    scrapes_ms: list[float]
    kib: int
    series: int
    """Those of guests."""


def scrape(number: int = GUESTS) -> Iterator[Figure]:
    """Two hundred guests with two disks and a NIC each, which the host may ask."""
    with fresh_agent() as agent:
        agent.drop("net.toml", '[bridge.br-bench]\naddresses = ["10.66.0.1/16"]\n')
        for guest in range(number):
            agent.drop(f"g{guest}.toml", bare_unit(agent, f"g{guest}", _devices(agent, guest)))
        start(agent)
        if len(pids(agent)) != number:
            raise RuntimeError(f"{len(pids(agent))} of {number} guests run")
        seen = _watched(agent)
        agent.terminate()
        without, with_looks, commands = asyncio.run(_pollers(agent))
    yield Figure(f"pollers of {number} guests: of a core", "%", [with_looks - without], 3.0)
    yield Figure(f"QMP commands a look at {number} guests", "", [commands], None)
    yield Figure(f"agent with {number} guests, looks and scrapes: of a core", "%", [seen.cpu_percent], None)
    yield Figure(f"agent with {number} guests: memory", "MB", [seen.resident_mb], 130.0)
    yield Figure(f"scrape of {seen.kib} KiB while guests are looked at", "ms", seen.scrapes_ms, 60.0, at_p99=True)
    yield from compared(Taken(number, seen.scrapes_ms, seen.cpu_s * 1e6 / number, seen.series))


def _devices(agent: AgentProcess, guest: int) -> str:
    name = f"vm.g{guest}"
    disks = "".join(
        f'[{name}.disk.{disk}]\npath = "{agent.folder}/g{guest}-{disk}.raw"\nsize = "16M"\n' for disk in ("a", "b")
    )
    return f'{disks}[{name}.nic.lan]\nbridge = "br-bench"\naddress = "10.66.{1 + guest // 200}.{1 + guest % 200}"\n'


def _watched(agent: AgentProcess) -> _Seen:
    """Look on while a real agent is scraped."""
    status(agent)
    pid = agent.process.pid if agent.process is not None else 0
    time.sleep(INTERVAL_S)
    resting = cpu_seconds(pid)
    time.sleep(UNSCRAPED_S)
    began, before, took_ms, body = time.monotonic(), cpu_seconds(pid), [], b""
    while time.monotonic() - began < REST_S:
        connection = http.client.HTTPConnection("127.0.0.1", 9177, timeout=30)
        asked = time.perf_counter()
        connection.request("GET", "/metrics")
        body = connection.getresponse().read()
        took_ms.append((time.perf_counter() - asked) * 1000)
        connection.close()
        time.sleep(SCRAPE_EVERY_S)
    spent_s, after, resident = time.monotonic() - began, cpu_seconds(pid), resident_bytes(pid)
    if resting is None or before is None or after is None or resident is None:
        raise RuntimeError("the agent is gone")
    unscraped, scraped = (before - resting) / UNSCRAPED_S, (after - before) / spent_s
    cpu_s = unscraped * INTERVAL_S + (scraped - unscraped) * spent_s / len(took_ms)
    series = sum(b'vm="' in line for line in body.splitlines())
    return _Seen(100 * scraped, cpu_s, resident / 1e6, took_ms, len(body) // 1024, series)


async def _pollers(agent: AgentProcess) -> tuple[float, float, float]:
    """Percent of a core of this process that follows all guests, without looks and with them; commands a look."""
    async with measuring(agent, INTERVAL_S, begin=False) as seen:
        without = await _percent()
        seen.measures.poll_in(seen.group)
        await seen.until(lambda: len(seen.measures.latest) == len(list(seen.guests)), 60.0)
        seen.witness.commands.clear()
        with_looks = await _percent()
        commands = sum(seen.witness.commands.values()) - seen.witness.commands.get("query-status", 0)
        return without, with_looks, commands / (len(seen.measures.latest) * (REST_S / INTERVAL_S + 1))


async def _percent() -> float:
    await asyncio.sleep(INTERVAL_S)
    before = time.process_time()
    await asyncio.sleep(REST_S)
    return 100 * (time.process_time() - before) / REST_S
