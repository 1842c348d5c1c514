"""What a unit may hand to QEMU past this agent's own vocabulary, and where a guest's display may be shown."""

from __future__ import annotations

import ipaddress
import re

from agent.unitfile.values import BadValueError, parse_short, quoted, shown

MAX_ARGUMENT_BYTES = 131_071
"""What the kernel takes as one argument, less its terminating NUL (execve(2), MAX_ARG_STRLEN with pages of 4 KiB)."""

MAX_DISPLAY = 5899
"""A larger number is a port that was taken for a display: display N listens on TCP port 5900 + N (qemu(1), -vnc)."""

_REFUSED = {
    "daemonize": "the agent watches the very process that it starts",
    "pidfile": "the agent's own pidfile keeps the guest from being started twice",
    "name": "the guest is called as its table is",
    "uuid": 'the guest is known by its uuid; write uuid = "…" in its table',
    "runas": "QEMU runs as the guest's own user from the first instruction on",
    "run-with": "QEMU runs as the guest's own user from the first instruction on",
    "chroot": "QEMU has no right to it, and the agent finds its sockets where they are now",
    "sandbox": "the agent's own sandbox confines what breaks out of a guest",
    "action": "the agent tells an end's cause by what QEMU does then",
    "no-reboot": "the agent tells an end's cause by what QEMU does then",
    "no-shutdown": "the agent tells an end's cause by what QEMU does then",
    "watchdog-action": 'the agent tells an end\'s cause by what QEMU does then; write watchdog = "…" in its table',
    "incoming": "QEMU would wait for a migration that nobody sends",
    "preconfig": "QEMU would wait for a command that nobody sends",
}
"""QEMU's options that would take away what the agent stands on, with the reason; everything else is the operator's."""

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:]+)\]|([0-9.]+)):([0-9]{1,5})", re.ASCII)


def parse_extra_arg(value: object) -> str:
    """One argument of QEMU's command line, as written; QEMU takes options with one dash or two."""
    text = parse_short(value, MAX_ARGUMENT_BYTES)
    option = text.removeprefix("-").removeprefix("-") if text.startswith("-") else ""
    if option in _REFUSED:
        raise BadValueError(f"must not hold {quoted(text)}: {_REFUSED[option]}")
    word, space, rest = text.partition(" ")
    if space and re.fullmatch("--?[a-z][a-z-]*", word, re.ASCII):
        raise BadValueError(
            f"must hold one argument in each string, not {quoted(text)}", f"write {quoted(word)}, {quoted(rest)}"
        )
    return text


def parse_vnc(value: object) -> bool | str:
    """Whether a guest has a display: true (a Unix socket), false, or HOST:DISPLAY as `parse_display` has it."""
    return value if isinstance(value, bool) else parse_display(value)


def parse_display(value: object) -> str:
    """A VNC display such as "127.0.0.1:1" in canonical form, on a loopback address: VNC has no password here."""
    found = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    try:
        address = ipaddress.ip_address((found[1] or found[2]) if found else "")
    except ValueError:
        raise BadValueError(
            f'must be true, false or a display such as "127.0.0.1:1", not {shown(value)}', _hint(value)
        ) from None
    number = int(found[3]) if found else 0
    host = f"[{address}]" if address.version == 6 else str(address)
    if not address.is_loopback or (found and bool(found[1]) != (address.version == 6)):
        why = "anybody who reaches it would be at the guest's screen and keyboard, without password or encryption"
        raise BadValueError(
            f"must be on a loopback address, not {shown(value)}: {why}",
            "take vnc = true, and `ssh -L` or `vmhost vnc NAME --listen PORT` to reach it",
        )
    if number > MAX_DISPLAY:
        hint = f'did you mean "{host}:{number - 5900}"?' if 5900 <= number <= 5999 else ""
        raise BadValueError(
            f"must be a display of 0 to {MAX_DISPLAY}, which is port 5900 + display, not {number}", hint
        )
    return f"{host}:{number}"


def _hint(value: object) -> str:
    """What was probably meant: 1, ":1", "1" and "localhost:1" are "127.0.0.1:1"."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return ""
    found = re.fullmatch(r"(?:(?:localhost|127\.0\.0\.1)?:)?([0-9]{1,4})", str(value), re.ASCII)
    if found and int(found[1]) <= MAX_DISPLAY:
        return f'did you mean "127.0.0.1:{int(found[1])}"?'
    return 'did you mean "127.0.0.1:0"?' if value in {"localhost", "127.0.0.1"} else ""
