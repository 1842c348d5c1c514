"""`vmhost vnc NAME`: where a guest's screen is, and a way to it for viewers that know TCP only."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from agent.cli.client import RefusedError, unusable
from agent.cli.commands import complain
from agent.cli.console import why_not_there
from agent.cli.tables import write_line
from agent.core.qemu.display import VNC_SOCKET, vnc_port, written
from agent.core.text import printable
from agent.host.listeners import find_listener

GREETING = b"RFB "
"""What a VNC server says first (RFC 6143, 7.1.1)."""

ANSWER_S = 2.0
CHUNK_BYTES = 65_536
VIEWERS = ("vncviewer", "xtigervncviewer", "remote-viewer")


@dataclass(frozen=True, slots=True)
class Screen:
    """Where a guest's VNC server listens: on a socket's `path`, or on an `address` of host and port."""

    name: str
    path: Path | None = None
    address: tuple[str, int] | None = None

    def shown(self) -> str:
        """The place in one word."""
        return written(self.address) if self.address else str(self.path)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the server; `OSError` if there is none."""
        if self.address is not None:
            return await asyncio.open_connection(*self.address)
        return await asyncio.open_unix_connection(self.path)


def find_screen(run_dir: Path, name: str) -> Screen:
    """Where the screen of a running guest is. RefusedError if it has none, does not run, or does not answer."""
    record = run_dir / "vms" / name / "launch.toml"
    try:
        launch = tomllib.loads(record.read_text(encoding="utf-8"))
        vnc, pid = launch["spec"].get("vnc", False), launch.get("pid")
    except FileNotFoundError:
        raise RefusedError(why_not_there(run_dir, name)) from None
    except OSError as error:
        raise unusable(error, record) from error
    except (ValueError, KeyError, AttributeError) as error:
        raise RefusedError(f"{record} cannot be understood; the agent mends it when it starts") from error
    if vnc is False:
        hint = f"`vnc = true` in its unit and `vmhost restart {name}` give it one"
        raise RefusedError(f"vm {name} was started without a screen; {hint}")
    screen = Screen(name, record.with_name(VNC_SOCKET)) if vnc is True else Screen(name, address=vnc_port(vnc))
    _refuse_foreign(screen, pid)
    _greeted(screen)
    return screen


def _refuse_foreign(screen: Screen, pid: int | None) -> None:
    """RefusedError if another program than the guest's QEMU has its port."""
    holder = find_listener(*screen.address) if screen.address is not None else None
    if holder is not None and holder.pid != pid:
        way_out = f"give the guest another display (`vnc =` in its unit) and `vmhost restart {screen.name}`"
        where = f"{printable(str(holder))} listens at {screen.shown()}, not QEMU of vm {screen.name}"
        raise RefusedError(f"{where}: end it, or {way_out}")


def _greeted(screen: Screen) -> None:
    family = (
        socket.AF_UNIX if screen.address is None else socket.AF_INET6 if ":" in screen.address[0] else socket.AF_INET
    )
    with socket.socket(family, socket.SOCK_STREAM) as line:
        line.settimeout(ANSWER_S)
        try:
            line.connect(screen.address or str(screen.path))
            if line.recv(len(GREETING)) != GREETING:
                raise RefusedError(f"what listens at {screen.shown()} is no VNC server")
        except (FileNotFoundError, ConnectionError):
            hint = f"`vmhost status {screen.name}` says why"
            raise RefusedError(f"vm {screen.name} does not run: nothing listens at {screen.shown()}; {hint}") from None
        except (TimeoutError, BlockingIOError):
            raise RefusedError(f"QEMU of vm {screen.name} does not answer") from None
        except OSError as error:
            raise unusable(error, Path(screen.shown())) from error


def parse_listen(text: str) -> tuple[str, int]:
    """`[HOST:]PORT` on a loopback address; ValueError in words for anything else."""
    found = re.fullmatch(r"(?:(?:\[([0-9A-Fa-f:]+)\]|([0-9.]+)|(localhost)):)?([0-9]{1,5})", text, re.ASCII)
    if not found or int(found[4]) > 65535:
        raise ValueError(f'"{text}" is no [HOST:]PORT')
    try:
        address = ipaddress.ip_address(found[1] or found[2] or "127.0.0.1")
    except ValueError:
        raise ValueError(f'"{text}" has no address before its port') from None
    if not address.is_loopback:
        raise ValueError(
            f'"{text}" is not on this host alone; a screen has no password, take ssh -L to come from elsewhere'
        )
    return str(address), int(found[4])


def describe(screen: Screen) -> None:
    """Say how to come to a screen."""
    write_line(sys.stdout, screen.shown())
    if screen.address is not None:
        write_line(sys.stdout, f"a viewer on this host: {' '.join(viewer_command('vncviewer', screen.address))}")
    else:
        write_line(sys.stdout, f"a viewer on this host: vmhost vnc {screen.name} --listen 5900, or --open")
        write_line(sys.stdout, f"from another host: ssh -L 5900:{screen.path} HOST, as a user who may open it")


def viewer_command(viewer: str, address: tuple[str, int]) -> list[str]:
    """A viewer's command line; with two colons VNC viewers take the number for a port, whatever it is."""
    host, port = address
    if Path(viewer).name == "remote-viewer":
        return [viewer, f"vnc://{written(address)}"]
    return [viewer, f"[{host}]::{port}" if ":" in host else f"{host}::{port}"]


def find_viewer() -> str:
    """The first viewer that is installed; RefusedError says which package has one."""
    found = next((path for viewer in VIEWERS if (path := shutil.which(viewer))), None)
    if found is None:
        raise RefusedError(f"none of {', '.join(VIEWERS)} is installed (Debian: apt install tigervnc-viewer)")
    return found


def open_viewer(viewer: str, address: tuple[str, int]) -> int:
    """Run a viewer until it ends; its exit code."""
    return subprocess.run(viewer_command(viewer, address), check=False).returncode


async def forward(screen: Screen, listen: tuple[str, int], viewer: str | None, *, as_json: bool = False) -> int:
    """Pass connections to `listen` on to a screen: while the viewer runs, without one until cancelled.

    A guest that is started again meanwhile is reached again. Returns the viewer's exit code. RefusedError if the port
    is not to be had; it is free again afterwards.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _join(screen, reader, writer)

    try:
        server = await asyncio.start_server(serve, *listen)
    except OSError as error:
        holder = find_listener(*listen) if error.errno == errno.EADDRINUSE else None
        why = f"{printable(str(holder))} listens there; end it" if holder else (error.strerror or str(error)).lower()
        raise RefusedError(f"{written(listen)}: {why}, or take another port") from error
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        if viewer is not None:
            return await asyncio.to_thread(open_viewer, viewer, (host, port))
        if as_json:
            print(json.dumps({"name": screen.name, "listens": written((host, port))}))
        else:
            command = " ".join(viewer_command("vncviewer", (host, port)))
            write_line(
                sys.stdout, f"{command} shows {screen.name} until Ctrl-C; every user of this host can do that now"
            )
        sys.stdout.flush()
        await asyncio.get_running_loop().create_future()
    return 0


async def _join(screen: Screen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        from_guest, to_guest = await screen.connect()
    except OSError as error:
        complain(f"{screen.shown()}: {(error.strerror or str(error)).lower()}")
        writer.close()
        return
    ways = [asyncio.create_task(_pass_on(reader, to_guest)), asyncio.create_task(_pass_on(from_guest, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        to_guest.close()
        writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
