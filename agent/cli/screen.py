"""A terminal for as long as something is drawn on it live, and as it was before, whatever ends that.

Nothing but ECMA-48 and the alternate screen (xterm, private mode 1049), which all terminals of today know; a frame is
one write, over the one before it, so that nothing flickers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import sys
import termios
import tty
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Self, TextIO

ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
LEAVE = "\x1b[?25h\x1b[?1049l"
HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"
"""Around a frame: a terminal that knows it shows all of it at once (synchronized output), the others pass it over."""

KEYS = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[5~": "page-up",
    b"\x1b[6~": "page-down",
    b"\x1b[H": "home",
    b"\x1bOH": "home",
    b"\x1b[1~": "home",
    b"\x1b[F": "end",
    b"\x1bOF": "end",
    b"\x1b[4~": "end",
    b" ": "page-down",
}
"""What keys send: in normal and in application mode (xterm, ctlseqs), on the console, and in rxvt."""

_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[@-~])|\x1b(?!\[|O)|[^\x1b]", re.DOTALL)
_BEGUN = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|O)?\Z", re.DOTALL)


def is_live(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether one can draw there: a terminal that is not dumb, with a keyboard."""
    return stream.isatty() and os.isatty(0) and environ.get("TERM", "dumb") not in {"", "dumb"}


def has_colour(environ: Mapping[str, str]) -> bool:
    """Whether colours are welcome (no-color.org; terminals without them end on `-m` or `-mono`)."""
    return not environ.get("NO_COLOR") and not environ.get("TERM", "").endswith(("-m", "-mono"))


def keys_of(data: bytes) -> tuple[list[str], bytes]:
    """The keys in what was typed, and the beginning of one that has not come whole; unknown sequences are no keys."""
    begun = _BEGUN.search(data)
    rest = begun.group() if begun else b""
    found = []
    for sequence in _SEQUENCE.findall(data[: len(data) - len(rest)]):
        key = KEYS.get(sequence) or (sequence.decode("latin-1") if len(sequence) == 1 else "")
        if key and key != "\x1b":
            found.append(key)
    return found, rest


class Screen:
    """The terminal of standard input and output, taken over until the block ends.

    It is restored also when SIGTERM or SIGHUP end the command, and while it is stopped (Ctrl-Z). Ctrl-C is
    KeyboardInterrupt, as everywhere.
    """

    def __init__(self) -> None:
        self._before = termios.tcgetattr(0)
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._handlers: dict[int, Any] = {}
        self._typed = b""
        self._stopping = False

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, _end)
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._resized)
        self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._stopped)
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._woken)
        os.close(self._waker)

    def wake(self) -> None:
        """Have `wait` return; from any thread, also when the screen is over."""
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody waits
            os.write(self._waker, b"\0")

    def size(self) -> tuple[int, int]:
        """Columns and lines, as of now."""
        with contextlib.suppress(OSError):
            lines, columns, _, _ = struct.unpack("4H", fcntl.ioctl(1, termios.TIOCGWINSZ, bytes(8)))
            if lines and columns:
                return columns, lines
        return 80, 24

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines instead of what was there, at one stroke. They must fit. EOFError: the terminal is gone."""
        # Cleared before it is written: behind a line as long as the screen is wide, the cursor still stands on its end.
        drawn = HOME + "\r\n".join(REST_OF_LINE + line for line in lines)
        rest = "\r\n" + REST_OF_SCREEN if len(lines) < self.size()[1] else ""
        try:
            _write_all(BEGIN + drawn + rest + END)
        except OSError as error:
            raise EOFError from error

    def wait(self) -> Iterator[str]:
        """The keys that come next; none when somebody woke, or the terminal has another size.

        Raises EOFError when the terminal is gone.
        """
        readable, _, _ = select.select([0, self._woken], [], [])
        if self._woken in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 4096)
            if self._stopping:
                self._stop()
        if 0 not in readable:
            return iter(())
        try:
            data = os.read(0, 4096)
        except OSError as error:  # EIO: its other side is closed (tty_io.c)
            raise EOFError from error
        if not data:
            raise EOFError
        keys, self._typed = keys_of(self._typed + data)
        return iter(keys)

    def _take(self) -> None:
        tty.setcbreak(0, termios.TCSADRAIN)
        _write_all(ENTER)

    def _give_back(self) -> None:
        with contextlib.suppress(OSError, termios.error):  # the terminal may be gone
            _write_all(LEAVE)
            termios.tcsetattr(0, termios.TCSADRAIN, self._before)

    def _resized(self, _: int, __: FrameType | None) -> None:
        self.wake()

    def _stopped(self, _: int, __: FrameType | None) -> None:
        self._stopping = True
        self.wake()

    def _stop(self) -> None:
        self._stopping = False
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)  # returns once it is continued
        self._take()


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _write_all(text: str) -> None:
    sys.stdout.flush()
    data = text.encode("utf-8", "replace")
    while data:
        data = data[os.write(1, data) :]
