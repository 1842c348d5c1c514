"""The daemon's arguments."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

NICE = -10
"""The agent takes little and must heal in milliseconds while its guests take all there is (sched(7))."""


def parser() -> argparse.ArgumentParser:
    """The flags of `vmhost-agent`; there is no other way to set anything."""
    flags = argparse.ArgumentParser(prog="vmhost-agent", description="Keeps this host as the unit files say.")
    flags.add_argument("--units", type=Path, default=Path("/etc/vmhost.d"), help="unit directory (%(default)s)")
    flags.add_argument("--run-dir", type=Path, default=Path("/run/vmhost"), help="sockets, logs (%(default)s)")
    flags.add_argument("--state-dir", type=Path, default=Path("/var/lib/vmhost"), help="kept state (%(default)s)")
    flags.add_argument("--listen", default="127.0.0.1:9177", metavar="HOST:PORT", help="metrics (%(default)s)")
    flags.add_argument("--listen-tls-cert", type=Path, metavar="FILE", help="metrics by HTTPS: certificates, in PEM")
    flags.add_argument("--listen-tls-key", type=Path, metavar="FILE", help="the key of the first of them, in PEM")
    flags.add_argument(
        "--listen-users",
        type=Path,
        metavar="FILE",
        help="metrics for these users only: lines as `vmhost hash-password` writes them",
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
    return flags


def main() -> int:
    """Run the agent until SIGTERM. Exit 0 after one, 1 if it cannot start, 2 on wrong usage, 78 (EX_CONFIG) where no
    retry can mend what keeps it from starting: a state that a later version wrote."""
    arguments = parser().parse_args()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    # structlog would load all of rich for the colours of tracebacks, 4 MB and a twentieth of a start; a log has none.
    sys.modules["rich"] = None  # type: ignore[assignment]
    # Here, because reading all this code takes most of a start, and an agent that returns to a busy host is awaited.
    from agent.core.rights import Readers  # noqa: PLC0415
    from agent.daemon import Settings, run  # noqa: PLC0415
    from agent.telemetry.guard import Protection  # noqa: PLC0415
    from agent.telemetry.listen import ListenError, parse_listen  # noqa: PLC0415

    try:
        listen = parse_listen(arguments.listen)
    except ListenError as error:
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
        )
    )


if __name__ == "__main__":
    sys.exit(main())
