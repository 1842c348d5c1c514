"""Published ports of many guests: one that changes among hundreds, and all of them lost at once, under load."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from agent.core.routing.firewall import NAT
from agent.core.routing.ruleset import Element, ElementChange
from agent.host.nft import change_tables
from agent.host.nft_events import NftEvents
from bench.figures import Figure
from bench.host import bare_unit, fresh_agent, start, wait_settled
from bench.starts import DEBOUNCE_MS
from tests.agent_process import AgentProcess
from tests.internet import Box
from tests.netns import ip, network_namespace

GUESTS, PORTS = 50, 10
ROUNDS = 25
EVENT_S = 10.0
HOST, STRANGER = "198.51.100.1", "198.51.100.9"
BRIDGE = '[bridge.br-bench]\naddresses = ["10.77.0.1/24"]\nnat = true\n'
BOX = "10.77.0.100"
"""The guest in whose place a box answers: the first one."""

LOADED_PORT, ASKED_PORT = 2000, 2001
TRANSFER_PAUSE_S, LOAD_PAUSE_S = 0.01, 0.001
"""6 MB in a second, and 60."""


def _unit(agent: AgentProcess, number: int, last: str) -> str:
    """A guest with ten ports, the last of them as told."""
    first = LOADED_PORT + number * PORTS
    ports = [*(f"{port}:{port - first + 80}" for port in range(first, first + PORTS - 1)), last]
    quoted = ", ".join(f'"{port}"' for port in ports)
    nic = f'[vm.g{number}.nic.lan]\nbridge = "br-bench"\naddress = "10.77.0.{100 + number}"\n'
    return bare_unit(agent, f"g{number}", f"publish = [{quoted}]\n{nic}")


@contextmanager
def _published(pause_s: float) -> Iterator[tuple[AgentProcess, Box]]:
    """Fifty guests that run, with five hundred ports, and a stranger who sends 64 KiB to one after each pause."""
    with ExitStack() as stack:
        agent = stack.enter_context(fresh_agent())
        stranger = stack.enter_context(Box("up0", addresses=(f"{STRANGER}/24",), gateways=(HOST,)))
        ip(f"addr add {HOST}/24 dev up0")
        agent.drop("net.toml", BRIDGE)
        for number in range(GUESTS):
            agent.drop(f"g{number}.toml", _unit(agent, number, f"{9000 + number}:443"))
        start(agent)
        box = stack.enter_context(Box("box0", addresses=(f"{BOX}/24",), gateways=("10.77.0.1",)))
        ip("link set box0 master br-bench")
        box.serve(80, "load")
        box.serve(81, "answer")
        stranger.ask("hear_again", HOST, ASKED_PORT, 10.0)
        stranger.ask("load", HOST, LOADED_PORT, pause_s)
        yield agent, stranger


def one_forward(rounds: int = ROUNDS) -> Iterator[Figure]:
    """One of five hundred published ports is changed while another guest's connection is busy; beside it, `nft`."""
    with _published(TRANSFER_PAUSE_S) as (agent, stranger):
        spent, bare = asyncio.run(_changes(agent, rounds))
        if stranger.ask("loaded")[0] <= 0:
            raise RuntimeError("a connection to another guest was cut")
    name = f"one of {GUESTS * PORTS} published ports changed → in the kernel, debounce aside"
    yield Figure(name, "ms", spent, 20.0, bare, "`nft`, one element")


async def _changes(agent: AgentProcess, rounds: int) -> tuple[list[float], list[float]]:
    spent, bare = [], []
    changed: asyncio.Queue[float] = asyncio.Queue()
    with NftEvents(NAT) as events:
        watching = asyncio.create_task(events.watch(lambda _: changed.put_nowait(time.perf_counter())))
        for number in range(rounds):
            began = time.perf_counter()
            agent.drop("g7.toml", _unit(agent, 7, f"{9500 + number}:443"))
            done = await asyncio.wait_for(changed.get(), EVENT_S)
            while not await asyncio.to_thread(_leads, 9500 + number):  # that was of a change before
                done = await asyncio.wait_for(changed.get(), EVENT_S)
            spent.append((done - began) * 1000 - DEBOUNCE_MS)
            await asyncio.to_thread(wait_settled, agent)
            bare.append(await asyncio.to_thread(_by_hand_ms, f"add element inet vmhost ended4 {_element(number)}"))
            await asyncio.sleep(0)
            await asyncio.to_thread(wait_settled, agent)
            while not changed.empty():
                changed.get_nowait()
        watching.cancel()
    return spent, bare


def _leads(port: int) -> bool:
    """Whether a port is published by now."""
    words = ["nft", "get", "element", "inet", "vmhost", "ports4", f"{{ tcp . {port} }}"]
    return subprocess.run(words, capture_output=True, timeout=20, check=False).returncode == 0


def transaction(rounds: int = ROUNDS) -> Iterator[Figure]:
    """The transaction of that alone: the former element goes, the new one comes; beside it `nft`, which adds one."""
    spent, bare = [], []
    with network_namespace():
        forwards = [
            Element("ports4", f"tcp . {LOADED_PORT + at}", f"10.77.0.{100 + at // PORTS} . {80 + at % PORTS}")
            for at in range(GUESTS * PORTS)
        ]
        change_tables(NAT, ElementChange(tuple(forwards), whole=True))
        former = forwards[75]
        for number in range(rounds):
            changed = former._replace(key=f"tcp . {9500 + number}")
            began = time.perf_counter()
            change_tables(NAT, ElementChange((changed,), (former,)))
            spent.append((time.perf_counter() - began) * 1000)
            bare.append(_by_hand_ms(f"add element inet vmhost ended4 {_element(number)}"))
            former = changed
    name = f"one of {GUESTS * PORTS} published ports changed: the transaction"
    yield Figure(name, "ms", spent, 20.0, bare, "`nft`, one element")


def _element(number: int) -> str:
    """A forward that never was, whose connections are to be ended: the agent forgets it again."""
    return f"{{ tcp . {20_000 + number} . {20_000 + number} . 10.77.0.99 . 80 }}"


def _by_hand_ms(command: str) -> float:
    began = time.perf_counter()
    subprocess.run(["nft", *command.split(" ")], check=True, timeout=20)
    return (time.perf_counter() - began) * 1000


def flushed(rounds: int = ROUNDS) -> Iterator[Figure]:
    """`nft flush ruleset`; from before it until a new connection to a published port is answered."""
    back, healthy = [], []
    with _published(LOAD_PAUSE_S) as (agent, stranger):
        for _ in range(rounds):
            if stranger.ask("loaded")[-1] < 0:
                stranger.ask("load", HOST, LOADED_PORT, LOAD_PAUSE_S)
            began = time.perf_counter()
            subprocess.run(["nft", "flush", "ruleset"], check=True, timeout=20)
            stranger.ask("hear_again", HOST, ASKED_PORT, 10.0)
            back.append((time.perf_counter() - began) * 1000)
            wait_settled(agent)
            healthy.append(stranger.ask("hear_again", HOST, ASKED_PORT, 10.0) * 1000)
        cut = sum(number < 0 for number in stranger.ask("loaded"))
        print(f"busy connections that a flush cut: {cut} of {rounds}", flush=True)
    yield Figure(
        "`nft flush ruleset` under load → a published port answers",
        "ms",
        back,
        100.0,
        healthy,
        "an answer",
        at_p99=True,
    )
