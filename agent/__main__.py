"""The daemon's arguments."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.runtime.notifications import Hook, Notifying

NICE = -10
"""The agent takes little and must heal in milliseconds while its guests take all there is (sched(7))."""


def parser() -> argparse.ArgumentParser:
    """The flags of `vmhost-agent`; there is no other way to set anything."""
    flags = argparse.ArgumentParser(prog="vmhost-agent", description="Keeps this host as the unit files say.")
    flags.add_argument("--units", type=Path, default=Path("/etc/vmhost.d"), help="unit directory (%(default)s)")
    flags.add_argument("--run-dir", type=Path, default=Path("/run/vmhost"), help="sockets, logs (%(default)s)")
    flags.add_argument("--state-dir", type=Path, default=Path("/var/lib/vmhost"), help="kept state (%(default)s)")
    flags.add_argument(
        "--listen", default="127.0.0.1:9177", metavar="HOST:PORT", help="metrics, status page (%(default)s)"
    )
    flags.add_argument("--listen-tls-cert", type=Path, metavar="FILE", help="metrics by HTTPS: certificates, in PEM")
    flags.add_argument("--listen-tls-key", type=Path, metavar="FILE", help="the key of the first of them, in PEM")
    flags.add_argument(
        "--listen-users",
        type=Path,
        metavar="FILE",
        help="metrics and page for these users only: lines as `vmhost hash-password` writes them",
    )
    flags.add_argument(
        "--max-disruption",
        type=int,
        default=3,
        metavar="N",
        help="guests that unit changes may stop within 60 s without `vmhost approve` (%(default)s)",
    )
    flags.add_argument(
        "--readers",
        choices=("group", "everyone"),
        default="group",
        help="who but root may read status, events, units and plans: group vmhost (default), or every user; "
        "to change anything takes root or the group in any case",
    )
    _add_notify_flags(flags)
    return flags


def _add_notify_flags(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--notify-command",
        type=Path,
        metavar="FILE",
        help="run this for each notification, which is JSON on its standard input",
    )
    urls = flags.add_mutually_exclusive_group()
    urls.add_argument("--notify-url", metavar="URL", help="POST each notification there: https, or http to this host")
    urls.add_argument(
        "--notify-url-file", type=Path, metavar="FILE", help="the same URL in a file, as everybody sees a command line"
    )
    flags.add_argument(
        "--notify-timeout", metavar="TIME", help="what one try of a notification may take, as 10s (default) or 1m"
    )
    flags.add_argument(
        "--notify-per-minute",
        type=int,
        metavar="N",
        help="notifications within 60 s at most (10); the last of them sums up what is left",
    )


def main() -> int:
    """Run the agent until SIGTERM. Exit 0 after one, 1 if it cannot start, 2 on wrong usage, 78 (EX_CONFIG) where no
    retry can mend what keeps it from starting: a state that a later version wrote."""
    arguments = parser().parse_args()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    # structlog would load all of rich for the colours of tracebacks, 4 MB and a twentieth of a start; a log has none.
    sys.modules["rich"] = None  # type: ignore[assignment]
    # Here, because reading all this code takes most of a start, and an agent that returns to a busy host is awaited.
    from agent.core.errors import AgentError  # noqa: PLC0415
    from agent.core.rights import Readers  # noqa: PLC0415
    from agent.daemon import Settings, run  # noqa: PLC0415
    from agent.telemetry.guard import Protection  # noqa: PLC0415
    from agent.telemetry.listen import parse_listen  # noqa: PLC0415

    try:
        listen = parse_listen(arguments.listen)
        notifying = _notifying(arguments)
    except AgentError as error:
        parser().error(str(error))
    if arguments.max_disruption < 0:
        parser().error("--max-disruption: want 0 or more")
    certificate, key, users = (
        path.absolute() if path else None
        for path in (arguments.listen_tls_cert, arguments.listen_tls_key, arguments.listen_users)
    )
    if (certificate is None) != (key is None):
        parser().error("--listen-tls-cert and --listen-tls-key go together; give both")
    return run(
        Settings(
            units=arguments.units.absolute(),
            run_dir=arguments.run_dir.absolute(),
            state_dir=arguments.state_dir.absolute(),
            listen=listen,
            max_disruption=arguments.max_disruption,
            readers=Readers(arguments.readers),
            protection=Protection(certificate, key, users),
            notifying=notifying,
        )
    )


def _notifying(arguments: argparse.Namespace) -> Notifying:
    """Whom to tell, by the flags; AgentError, with no secret in it, for flags that cannot be."""
    from agent.core.errors import AgentError, HookError  # noqa: PLC0415
    from agent.host.hook_command import CommandHook  # noqa: PLC0415
    from agent.runtime.notifications import Notifying  # noqa: PLC0415
    from agent.telemetry.webhook import Webhook  # noqa: PLC0415
    from agent.unitfile.values import BadValueError, parse_duration  # noqa: PLC0415

    command, url, file = arguments.notify_command, arguments.notify_url, arguments.notify_url_file
    timeout, per_minute = arguments.notify_timeout, arguments.notify_per_minute
    if not (command or url or file):
        if timeout is not None or per_minute is not None:
            raise AgentError("--notify-timeout and --notify-per-minute: nobody is told; give --notify-command or a URL")
        return Notifying()
    try:
        timeout_s = parse_duration(timeout or "10s")
    except BadValueError as error:
        raise AgentError(f"--notify-timeout: {error}") from error
    per_minute = 10 if per_minute is None else per_minute
    if not 1 <= timeout_s <= 300 or per_minute < 1:
        raise AgentError("--notify-timeout: want 1s to 5m; --notify-per-minute: want 1 or more")
    hooks: list[Hook] = [CommandHook(command.absolute(), timeout_s)] if command else []
    try:
        hooks += [Webhook(file.absolute() if file else url, timeout_s)] if file or url else []
    except HookError as error:
        raise AgentError(f"--notify-url: {error}") from error
    return Notifying(tuple(hooks), per_minute)


if __name__ == "__main__":
    sys.exit(main())
