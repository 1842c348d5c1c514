"""The composition root: makes the adapters, joins them, and runs them until a signal.

Whatever ends the agent, guests run on: the next one adopts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from agent.core.defaults import GROUP, SOCKET_NAME
from agent.core.errors import AgentError
from agent.core.rights import Readers, Rights
from agent.core.tell.status import AgentFacts
from agent.host.netlink import VlanLinks
from agent.host.notify import Notifier
from agent.host.peers import find_group
from agent.host.statedir import LaterStateError, StateDirectory, StateRefusedError, lock_directory
from agent.runtime.agent import Agent
from agent.runtime.chronicle import Chronicle
from agent.runtime.clock import now_s
from agent.runtime.control import serve_control
from agent.runtime.host_found import look_for_qemu
from agent.runtime.listener import Sources, keep_listening
from agent.runtime.notifications import Notifying
from agent.runtime.reach import tell_reach
from agent.runtime.service import Service
from agent.runtime.starts import Starts, starts_here
from agent.runtime.status_page import page_sources
from agent.telemetry.guard import Protection
from agent.telemetry.httpd import Health, health_of_passes
from agent.telemetry.journal import Journal, set_up_logging
from agent.telemetry.listen import Listen
from agent.telemetry.metrics import Metrics
from agent.telemetry.page import Page

log = structlog.get_logger("vmhost")

HEALTHY_PASS_AGE_S = 90.0
"""A full look rings every 30 s, so three in a row were missed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the daemon was told on its command line."""

    units: Path
    run_dir: Path
    state_dir: Path
    listen: Listen
    max_disruption: int
    readers: Readers
    protection: Protection
    notifying: Notifying


def run(settings: Settings) -> int:
    """Run the agent until SIGTERM or SIGINT (exit 0); 1, with one line that says why, if it cannot start or go on.

    `EX_CONFIG` (sysexits.h) instead if no retry can mend it, so that the service manager does not try again.
    """
    set_up_logging()
    problems: list[BaseException] = []
    with contextlib.ExitStack() as told:
        notifier = told.enter_context(Notifier.from_environment(os.environ))
        try:
            _run(settings, notifier)
        except* (AgentError, OSError) as errors:
            problems = list(_leaves(errors))
        for problem in problems:
            sys.stderr.write(f"vmhost-agent: {problem}\n")
            notifier.status(str(problem))
    if any(isinstance(problem, LaterStateError) for problem in problems):
        return os.EX_CONFIG
    return 1 if problems else 0


def _run(settings: Settings, notifier: Notifier) -> None:
    with contextlib.ExitStack() as held:
        state = _claim(settings, held)
        starts = starts_here(os.environ, settings.run_dir)
        asyncio.run(_serve(settings, state, notifier, starts))


def _leaves(errors: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _claim(settings: Settings, held: contextlib.ExitStack) -> StateDirectory:
    """Make this the one agent of its directories and its network namespace; `StateRefusedError` names another one."""
    state = StateDirectory(settings.state_dir)
    held.callback(state.close)
    state.open()
    settings.run_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    settings.run_dir.chmod(0o711)  # QEMU, under its own user, passes through to its own folder; nobody lists it
    held.callback(os.close, lock_directory(settings.run_dir))
    held.enter_context(_only_one_in_namespace())
    return state


@contextlib.contextmanager
def _only_one_in_namespace() -> Iterator[None]:
    """Hold an abstract socket, of which each network namespace has its own set (unix(7))."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim:
        try:
            claim.bind("\0vmhost-agent")
        except OSError as error:
            raise StateRefusedError(
                "another vmhost-agent serves this network namespace; stop that one first"
            ) from error
        yield


async def _serve(settings: Settings, state: StateDirectory, notifier: Notifier, starts: Starts) -> None:
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    facts = AgentFacts(
        version=importlib.metadata.version("vmhost"),
        pid=os.getpid(),
        started=datetime.now(UTC).isoformat(timespec="milliseconds"),
        settled=False,
        units_dir=str(settings.units),
        listen=str(settings.listen),
    )
    memory, problem = await asyncio.to_thread(state.load)
    qemu = await look_for_qemu()
    rights = Rights(os.geteuid(), await asyncio.to_thread(find_group, GROUP), settings.readers)
    async with VlanLinks() as links, asyncio.TaskGroup() as group:
        metrics = Metrics(version=facts.version, qemu=qemu.version, started_s=time.time(), clock_s=now_s)
        chronicle = Chronicle(Journal(), metrics)
        if problem:
            chronicle.journal.record("agent", "state-rebuilt", problem, level="warning")
        agent = Agent(
            settings.units,
            settings.run_dir,
            state,
            memory,
            links,
            chronicle,
            settings.max_disruption,
            facts,
            qemu,
            notifier,
            starts,
        )
        serving = group.create_task(agent.run(), name="agent")
        listening = group.create_task(_serve_metrics(settings, agent, chronicle), name="metrics")
        notifying = group.create_task(_notify(settings.notifying, agent), name="notifications")
        async with serve_control(settings.run_dir / SOCKET_NAME, agent.operator, rights):
            chronicle.journal.record("agent", "started", f"vmhost-agent {facts.version} serves {settings.units}")
            reporting = group.create_task(Service(notifier, agent, chronicle.journal).run(reload), name="service")
            await _until_stopped(stop, serving)
            notifier.stopping()
        chronicle.journal.record("agent", "ended", "vmhost-agent ends; guests run on")
        serving.cancel()
        listening.cancel()
        notifying.cancel()
        reporting.cancel()


async def _until_stopped(stop: asyncio.Event, serving: asyncio.Task[None]) -> None:
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({stopped, serving}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()


async def _notify(notifying: Notifying, agent: Agent) -> None:
    if notifying.hooks:
        await agent.notify(notifying)


async def _serve_metrics(settings: Settings, agent: Agent, chronicle: Chronicle) -> None:
    def health() -> Health:
        return health_of_passes(chronicle.last_pass_s, now_s(), HEALTHY_PASS_AGE_S)

    page = Page(page_sources(agent, chronicle.journal, lambda: agent.measures.latest))
    sources = Sources(chronicle.metrics.render, health, chronicle.journal, agent.operator.note_problem, page)
    async with asyncio.TaskGroup() as group:
        group.create_task(keep_listening(settings.listen, settings.protection, sources), name="listener")
        group.create_task(tell_reach(settings.listen, settings.protection, sources, os.environ), name="reach")
