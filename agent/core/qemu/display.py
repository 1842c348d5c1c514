"""A guest's screen, keyboard and pointer, and the VNC server that shows them; nothing of it without `vnc`."""

from __future__ import annotations

from collections.abc import Mapping

Json = Mapping[str, object]

SCREEN_ADDRESS, USB_ADDRESS = "0x2", "0x7"
"""Fixed places on the root bus that no other device has: a display that comes or goes moves nothing."""

VNC_SOCKET = "vnc.sock"
FIRST_VNC_PORT = 5900


def display_devices(bus: str) -> tuple[Json, ...]:
    """A standard VGA card, which every firmware and system can draw on, and a pointer with absolute coordinates.

    The keyboard is the machine's own (PS/2). A tablet on USB spares a viewer the grabbing of the pointer and needs
    no driver that an installer lacks, as a virtio one would.
    """
    return (
        {"driver": "VGA", "id": "screen", "bus": bus, "addr": SCREEN_ADDRESS},
        {"driver": "qemu-xhci", "id": "usb", "bus": bus, "addr": USB_ADDRESS},
        {"driver": "usb-tablet", "id": "pointer", "bus": "usb.0"},
    )


def vnc_server(vnc: bool | str, directory: str) -> tuple[str, ...]:
    """The option that shows a guest's screen: on a socket in its run directory, or on an address (qemu(1), -vnc)."""
    if vnc is False:
        return ()
    return ("-vnc", f"unix:{directory.replace(',', ',,')}/{VNC_SOCKET}" if vnc is True else vnc)


def vnc_port(vnc: str) -> tuple[str, int]:
    """The TCP host and port of a display: "127.0.0.1:1" is port 5901 there."""
    host, _, number = vnc.rpartition(":")
    return host.strip("[]"), FIRST_VNC_PORT + int(number)


def written(address: tuple[str, int]) -> str:
    """Host and port in one word."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
