"""`vmhost top` on a terminal: one asks the agent, another draws and hears the keys."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from agent.cli.client import AgentClient, NoAgentError, RefusedError
from agent.cli.screen import Screen, has_colour
from agent.cli.top_table import SORT_KEYS, View, frame
from agent.core.tell.looks import GuestLook, parse_look
from agent.core.tell.rates import GuestRates, rates

AGAIN_S = 1.0
"""How soon an agent that did not answer is asked again."""

FRESH = 0.5
"""Of an interval: a look that is older is made anew, so each one shown is of its own interval, whoever else asks."""

Looks = dict[str, GuestLook]
"""What the agent told of its guests, by name."""


def ask(client: AgentClient, interval_s: float) -> Looks:
    """The guests' counters, as fresh as an interval wants them. Raises NoAgentError and RefusedError."""
    answer = client.measures(interval_s * FRESH)
    try:
        return {one["name"]: parse_look(one) for one in answer["guests"]}
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"the agent speaks of its guests in another way than this vmhost: {error}") from error


def rates_of(before: Looks, after: Looks) -> list[GuestRates]:
    """What all guests did in between."""
    return [rates(before.get(name), look) for name, look in after.items()]


def show(client: AgentClient, interval_s: float, sort: str) -> None:
    """Draw until `q`. An agent that goes away is waited for; NoAgentError if there is none at first.

    Raises EOFError when the terminal is gone.
    """
    watcher = _Watcher(client, interval_s, ask(client, interval_s))
    try:
        with Screen() as screen:
            _Top(screen, watcher, View(sort=sort, colour=has_colour(os.environ))).run()
    finally:
        watcher.stop()


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is on the screen: the guests as of a moment, or what stands in the way of newer ones."""

    guests: Sequence[GuestRates] = ()
    at: datetime = field(default_factory=datetime.now)
    problem: str = ""


class _Watcher:
    """Asks the agent at each interval, beside the one who draws: a slow answer delays no key."""

    def __init__(self, client: AgentClient, interval_s: float, first: Looks) -> None:
        self.interval_s = interval_s
        self.shown = _Shown(rates_of({}, first))
        self._client = client
        self._before = first
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, wake: Callable[[], None]) -> None:
        """Begin; `wake` is called after each answer."""
        # Not joined at the end: an answer that hangs must not hold up whoever leaves.
        self._thread = threading.Thread(target=self._run, args=(wake,), daemon=True, name="asking the agent")
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()

    def _run(self, wake: Callable[[], None]) -> None:
        due_s = time.monotonic() + self.interval_s
        while not self._over.wait(max(0.0, due_s - time.monotonic())):
            due_s = max(due_s, time.monotonic() - self.interval_s) + self.interval_s
            try:
                found = ask(self._client, self.interval_s)
            except (NoAgentError, RefusedError) as error:
                self.shown = replace(self.shown, problem=str(error))
                due_s = time.monotonic() + AGAIN_S
            else:
                self.shown = _Shown(rates_of(self._before, found))
                self._before = found
            wake()


class _Top:
    """Draws, and does what keys say."""

    def __init__(self, screen: Screen, watcher: _Watcher, view: View) -> None:
        self._screen = screen
        self._watcher = watcher
        self._view = view

    def run(self) -> None:
        """Until `q`."""
        self._watcher.start(self._screen.wake)
        while True:
            columns, lines = self._screen.size()
            shown = self._watcher.shown
            self._view = replace(self._view, columns=columns, lines=lines).moved(0, len(shown.guests))
            self._screen.draw(frame(shown.guests, self._view, self._head(shown)))
            for key in self._screen.wait():
                if key == "q":
                    return
                self._view = pressed(self._view, key, len(shown.guests))

    def _head(self, shown: _Shown) -> str:
        order = f"by {self._view.sort}" + (", reversed" if self._view.reverse else "")
        when = f"vmhost top   {shown.at:%H:%M:%S}   "
        return f"{when}{shown.problem or f'every {self._watcher.interval_s:g} s, {order}'}"


def pressed(view: View, key: str, guests: int) -> View:
    """The view after a key; a key that means nothing changes nothing."""
    if key in SORT_KEYS:
        return replace(view, sort=SORT_KEYS[key], reverse=False, offset=0)
    if key == "r":
        return replace(view, reverse=not view.reverse, offset=0)
    steps = {"up": -1, "down": 1, "page-up": -view.room, "page-down": view.room, "home": -guests, "end": guests}
    return view.moved(steps.get(key, 0), guests)
