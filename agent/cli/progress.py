"""Says what is being waited for once it takes long: a spinner on a terminal, a single line elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from agent.core.text import printable

PATIENCE_S = 2.0
REFRESH_S = 1.0


class Progress:
    """Runs beside a wait. `describe` gives the line to show; it is called from a thread and must not raise."""

    def __init__(self, out: TextIO, describe: Callable[[], str]) -> None:
        self._out = out
        self._describe = describe
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(REFRESH_S)

    def _run(self) -> None:
        if self._over.wait(PATIENCE_S):
            return
        if not self._out.isatty():
            self._out.write(printable(self._describe()) + "\n")
            self._out.flush()
            return
        from rich.console import Console  # noqa: PLC0415 - seldom needed, slow to import
        from rich.markup import escape  # noqa: PLC0415

        with Console(file=self._out).status("") as spinner:
            while not self._over.is_set():
                spinner.update(escape(printable(self._describe())))
                self._over.wait(REFRESH_S)
