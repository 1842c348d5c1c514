"""The subcommands for people at work on units and guests: their arguments, and what each does.

Apart from `report` none of them asks the agent, so they do their work without one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

from agent.cli.client import RefusedError, unusable
from agent.cli.commands import FALSE, TRUE, complain
from agent.cli.tables import write_line, write_table
from agent.core.qemu.display import written
from agent.core.text import counted

Add = Callable[[str, str], argparse.ArgumentParser]
"""Adds a subcommand with its one-line text."""


def add_commands(add: Add) -> None:
    """Add the subcommands of this module to the grammar."""
    _add_init(add("init", "write a unit file for a new guest"))
    add("schema", "print the JSON Schema of unit files, for editors").set_defaults(run=schema)
    history_command = add("history", "show the good versions that unit files have had")
    history_command.add_argument("file", metavar="FILE", nargs="?", help="only this unit file: web, or web.toml")
    history_command.add_argument("version", metavar="VERSION", nargs="?", type=int, help="print this version's text")
    history_command.set_defaults(run=history)
    undo_command = add("undo", "put the former good version of a unit file back; twice: the later one again")
    undo_command.add_argument("file", metavar="FILE", help="the unit file: web, or web.toml; also one that is gone")
    undo_command.add_argument("--to", metavar="VERSION", type=int, help="this version (see vmhost history FILE)")
    undo_command.set_defaults(run=undo)
    console_command = add("console", "talk to a guest's serial console; Ctrl-] leaves it")
    console_command.add_argument("name", metavar="NAME", help="the guest")
    console_command.add_argument("--port", metavar="ID", help="not its console, but [vm.NAME.serial.ID]")
    console_command.add_argument(
        "--quiet-for",
        metavar="S",
        type=_seconds,
        default=1.0,
        help="in a pipe: end when the input has and the guest wrote nothing for S seconds (default 1; inf: never)",
    )
    console_command.set_defaults(run=console)
    vnc_command = add("vnc", "say where a guest's screen is, or bring a viewer to it")
    vnc_command.add_argument("name", metavar="NAME", help="the guest")
    vnc_command.add_argument(
        "--listen",
        metavar="[HOST:]PORT",
        type=_listen,
        help="pass a TCP port of this host on to the screen until Ctrl-C; every user of the host can use it",
    )
    vnc_command.add_argument("--open", action="store_true", help="run the first viewer that is installed")
    vnc_command.set_defaults(run=vnc)
    hash_command = add("hash-password", "write a line for vmhost-agent's --listen-users")
    hash_command.add_argument("name", metavar="NAME", help="the user that may read the metrics")
    hash_command.set_defaults(run=hash_password)
    report_command = add("report", "pack what a bug report needs, without secrets")
    report_command.add_argument("-o", "--output", metavar="FILE", help="default: vmhost-report-TIME.tar.gz here")
    report_command.set_defaults(run=report)


def _add_init(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", help="the guest; the file is NAME.toml in the unit directory")
    command.add_argument("--cpus", metavar="N", type=int, default=1)
    command.add_argument("--memory", metavar="SIZE", default="512M")
    command.add_argument(
        "--disk",
        metavar="PATH[:SIZE]",
        dest="disks",
        action="append",
        default=[],
        help="with a SIZE it is made if it is missing; may be given several times",
    )
    command.add_argument("--bridge", metavar="BR", help="plug it in here; a bridge that no unit has is added")
    command.add_argument("--kernel", metavar="PATH", help="boot this; without one it boots from its first disk")
    command.add_argument("--initrd", metavar="PATH")
    command.add_argument("--append", metavar="TEXT", help="the kernel's command line")
    command.add_argument("--print", action="store_true", help="print the file instead of writing it")
    command.set_defaults(run=init)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise argparse.ArgumentTypeError(f'"{text}" is no number of seconds')
    return value


def _listen(text: str) -> tuple[str, int]:
    from agent.cli.vnc import parse_listen  # noqa: PLC0415 - only this command needs it

    try:
        return parse_listen(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def init(arguments: argparse.Namespace) -> int:
    """`vmhost init NAME`: 1 and nothing written if a file is there or the guest cannot stand beside the other units."""
    from agent.cli.initial import compose, write  # noqa: PLC0415 - only this command needs it
    from agent.unitfile.template import BadValueError, UnitWish, parse_disk_wish  # noqa: PLC0415 - only this command needs it

    try:
        disks = tuple(parse_disk_wish(text) for text in arguments.disks)
    except BadValueError as error:
        raise RefusedError(f"--disk {error.problem}" + (f" ({error.hint})" if error.hint else "")) from error
    wish = UnitWish(
        name=arguments.name,
        cpus=arguments.cpus,
        memory=arguments.memory,
        disks=disks,
        bridge=arguments.bridge,
        kernel=arguments.kernel,
        initrd=arguments.initrd,
        append=arguments.append,
    )
    path, text = compose(wish, Path(arguments.units))
    if arguments.print:
        sys.stdout.write(text)
        return TRUE
    write(path, text)
    if arguments.json:
        print(json.dumps({"file": str(path)}))
    else:
        write_line(sys.stdout, f"{path} written; an agent that serves {arguments.units} starts {arguments.name} now")
    return TRUE


def schema(_: argparse.Namespace) -> int:
    """`vmhost schema`."""
    from agent.unitfile.json_schema import json_schema  # noqa: PLC0415 - only this command needs it

    print(json.dumps(json_schema(), indent=2))
    return TRUE


def history(arguments: argparse.Namespace) -> int:
    """`vmhost history [FILE [VERSION]]`."""
    from agent.cli import history as versions  # noqa: PLC0415 - only this command needs it
    from agent.host.statedir import UnitHistory  # noqa: PLC0415 - only this command needs it

    known, units = UnitHistory(Path(arguments.state_dir)), Path(arguments.units)
    try:
        if arguments.file is None:
            rows = versions.overview(known, units)
        else:
            name = versions.file_name(arguments.file, units)
            if arguments.version is not None:
                sys.stdout.flush()
                sys.stdout.buffer.write(versions.version_numbered(known, name, arguments.version).data)
                return TRUE
            rows = versions.versions_of(known, name, units)
    except OSError as error:
        raise unusable(error) from error
    if arguments.json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        write_line(sys.stdout, f"no unit file has a history in {arguments.state_dir} yet")
    elif arguments.file is None:
        cells = [(row["file"], str(row["versions"]), row["newest"], row["state"]) for row in rows]
        write_table(sys.stdout, ("FILE", "VERSIONS", "NEWEST", "STATE"), cells)
    else:
        cells = [(str(row["version"]), row["since"], f"+{row['added']} -{row['removed']}", _note(row)) for row in rows]
        write_table(sys.stdout, ("VERSION", "SINCE", "LINES", "NOTE"), cells)
    return TRUE


def _note(row: dict[str, object]) -> str:
    notes = ["present"] if row["present"] else []
    return ", ".join(notes + ([] if row["good"] else ["set aside by undo"]))


def undo(arguments: argparse.Namespace) -> int:
    """`vmhost undo FILE [--to VERSION]`."""
    from agent.cli import history as versions  # noqa: PLC0415 - only this command needs it
    from agent.host.statedir import UnitHistory  # noqa: PLC0415 - only this command needs it

    known, units = UnitHistory(Path(arguments.state_dir)), Path(arguments.units)
    name = versions.file_name(arguments.file, units)
    try:
        undone = versions.undo(known, name, units, arguments.to)
    except OSError as error:
        raise unusable(error) from error
    if arguments.json:
        print(json.dumps({"file": str(undone.path), "version": undone.written.number, "aside": undone.aside}))
        return TRUE
    write_line(sys.stdout, f"{undone.path} is version {undone.written.number} again")
    if undone.aside is not None:
        back = f"`vmhost undo {name} --to {undone.aside}` brings it back"
        write_line(sys.stdout, f"what stood there was never good and is kept as version {undone.aside}; {back}")
    return TRUE


def console(arguments: argparse.Namespace) -> int:
    """`vmhost console NAME`: 0 when the operator left it, 1 when the guest's QEMU ended."""
    from agent.cli.console import attach  # noqa: PLC0415 - only this command needs it

    why = attach(Path(arguments.run_dir), arguments.name, arguments.quiet_for, arguments.port)
    if why:
        complain(why)
    return FALSE if why else TRUE


def vnc(arguments: argparse.Namespace) -> int:
    """`vmhost vnc NAME [--listen [HOST:]PORT] [--open]`: 0 also when Ctrl-C ends it, 1 when the viewer fails."""
    import asyncio  # noqa: PLC0415 - only this command needs it

    from agent.cli import vnc as screens  # noqa: PLC0415 - only this command needs it

    screen = screens.find_screen(Path(arguments.run_dir), arguments.name)
    viewer = screens.find_viewer() if arguments.open else None
    if arguments.listen is None and viewer is None:
        if arguments.json:
            path, address = screen.path, screen.address
            place = {"socket": str(path) if path else None, "address": written(address) if address else None}
            print(json.dumps({"name": screen.name, **place}))
        else:
            screens.describe(screen)
        return TRUE
    if viewer is not None and arguments.listen is None and screen.address is not None:
        return FALSE if screens.open_viewer(viewer, screen.address) else TRUE
    listen = arguments.listen or ("127.0.0.1", 0)
    try:
        code = asyncio.run(screens.forward(screen, listen, viewer, as_json=arguments.json))
        return FALSE if code else TRUE
    except KeyboardInterrupt:
        return TRUE


def hash_password(arguments: argparse.Namespace) -> int:
    """`vmhost hash-password NAME`: asks for the password twice on a terminal, else it is the first line that comes."""
    import getpass  # noqa: PLC0415 - only this command needs it

    from agent.telemetry import passwords  # noqa: PLC0415 - only this command needs it

    if not passwords.NAME.fullmatch(arguments.name):
        raise RefusedError(f'"{arguments.name}" is no name for a user: no colon, no space or # at its beginning')
    if sys.stdin.isatty():
        password = getpass.getpass(f"password of {arguments.name}: ")
        if getpass.getpass("once more: ") != password:
            raise RefusedError("the two passwords differ; nothing was written")
    else:
        password = sys.stdin.readline().removesuffix("\n")
    if not password:
        raise RefusedError("an empty password protects nothing")
    print(f"{arguments.name}:{passwords.hash_password(password.encode())}")
    return TRUE


def report(arguments: argparse.Namespace) -> int:
    """`vmhost report`: written also without an agent."""
    from agent.cli.report import Folders, collect, default_path, write  # noqa: PLC0415 - only this command needs it

    path = Path(arguments.output) if arguments.output else default_path()
    live = sys.stderr.isatty()

    def say(what: str) -> None:
        if live:
            print(f"\r\x1b[Klooking at {what}", end="", file=sys.stderr, flush=True)

    try:
        parts = collect(Folders(Path(arguments.units), Path(arguments.run_dir)), say)
        write(path, parts)
    except FileExistsError:
        raise RefusedError(f"{path} is there already; it is left as it is") from None
    except OSError as error:
        raise unusable(error) from error
    finally:
        if live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    taken = sum(part.redactions for part in parts)
    if arguments.json:
        files = [{"name": part.name, "bytes": len(part.data), "redactions": part.redactions} for part in parts]
        print(json.dumps({"file": str(path), "files": files, "redactions": taken}, indent=2))
        return TRUE
    rows = [(part.name, str(len(part.data)), str(part.redactions or "")) for part in parts]
    write_table(sys.stdout, ("FILE", "BYTES", "REDACTED"), rows)
    write_line(
        sys.stdout, f"{path} written, {counted(taken, 'secret')} taken out; look into it before you send it to anybody"
    )
    return TRUE
