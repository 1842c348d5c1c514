"""UEFI for guests: which firmware the host has, and each guest's own variables.

A firmware tells what it is in a descriptor file (QEMU, docs/interop/firmware.json), so no path of a distribution is
known here. Both flash chips reach QEMU as open descriptors. Everything here blocks: call it from a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.core.errors import TransientError

DESCRIPTOR_FOLDERS = ("/etc/qemu/firmware", "/usr/share/qemu/firmware")
"""Where descriptors lie; one hides another of the same name in a later folder (firmware.json, "Search order")."""

ARCHITECTURE = "x86_64"
PLATFORM_KEY = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c") + "PK\0".encode("utf-16-le")
"""EFI_GLOBAL_VARIABLE and the name of the key without which Secure Boot enforces nothing (UEFI 2.10, 32.3)."""

_HEADER_BYTES, _START, _ADDED = 44, b"\xaa\x55", 0x3F
"""Of a variable in the store, up to its GUID: StartId and State (EDK II, AUTHENTICATED_VARIABLE_HEADER)."""


@dataclass(frozen=True, slots=True)
class Firmware:
    """A UEFI firmware of the host: the paths of its code, and of the variables that a new guest begins with."""

    code: str
    template: str


@dataclass(frozen=True, slots=True)
class OpenFirmware:
    """Descriptors of the code and of a guest's variables; whoever has this closes them."""

    code_fds: tuple[int, ...]
    variable_fds: tuple[int, ...]

    def close(self) -> None:
        """Close the descriptors; QEMU has its own by then."""
        for fd in (*self.code_fds, *self.variable_fds):
            os.close(fd)


def find_firmware(machine: str, *, secure_boot: bool, folders: Sequence[str] = DESCRIPTOR_FOLDERS) -> Firmware:
    """The host's first firmware for a machine (`q35`, `pc`), by the names of the descriptors as their standard says.

    With Secure Boot one that comes with enrolled keys, else one without it. TransientError `FirmwareMissing` if there
    is none: it is looked for again.
    """
    for path in _descriptor_files(folders):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            found = _firmware_of(json.loads(path.read_bytes()), machine, secure_boot)
            if found is not None and os.path.isfile(found.code) and os.path.isfile(found.template):
                return found
    what = "UEFI with Secure Boot" if secure_boot else "UEFI"
    raise TransientError(
        f"the host has no {what} firmware for {machine} (Debian: apt install ovmf)", reason="FirmwareMissing"
    )


def _descriptor_files(folders: Sequence[str]) -> Iterator[Path]:
    found: dict[str, Path] = {}
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            found |= {path.name: path for path in Path(folder).iterdir() if path.suffix == ".json"}
    yield from (found[name] for name in sorted(found))


def _firmware_of(descriptor: Mapping[str, object], machine: str, secure_boot: bool) -> Firmware | None:
    """What a descriptor describes, if it fits. One that only measures, or keeps no variables, is no UEFI of ours."""
    mapping, features = _table(descriptor["mapping"]), _listed(descriptor["features"])
    fits = any(_fits(_table(target), machine) for target in _listed(descriptor["targets"]))
    wanted = {"secure-boot", "enrolled-keys"} <= {*features} if secure_boot else "secure-boot" not in features
    split = mapping["device"] == "flash" and mapping.get("mode", "split") == "split"
    if not (fits and wanted and split and "uefi" in _listed(descriptor["interface-types"])):
        return None
    code, template = _table(mapping["executable"]), _table(mapping["nvram-template"])
    if code["format"] != "raw" or template["format"] != "raw":
        return None
    return Firmware(str(code["filename"]), str(template["filename"]))


def _fits(target: Mapping[str, object], machine: str) -> bool:
    """Machines are told as patterns of versioned names: `pc-q35-*`."""
    versioned = {"q35": "pc-q35-", "pc": "pc-i440fx-"}.get(machine, machine)
    machines = [str(name) for name in _listed(target["machines"])]
    return target["architecture"] == ARCHITECTURE and any(name.startswith(versioned) for name in machines)


def _table(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError("no object")
    return value


def _listed(value: object) -> Sequence[object]:
    if not isinstance(value, list):
        raise TypeError("no array")
    return value


def open_firmware(firmware: Firmware, folder: Path, guest_uuid: str, *, secure_boot: bool) -> OpenFirmware:
    """Open a firmware for one guest; its variables are `folder/UUID.fd`, made from the template when missing.

    That file is kept for ever and never written over by the agent. TransientError, with nothing changed:
    `FirmwareVariablesUnusable` if it cannot be had, is in use, or belongs to a firmware of another size, and
    `SecureBootKeysMissing` if Secure Boot is asked for and its keys are not in there, so nothing would be enforced.
    """
    path = folder / f"{guest_uuid}.fd"
    with contextlib.ExitStack() as opened:
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            template = Path(firmware.template).read_bytes()
            if not os.path.lexists(path):
                _create(path, template)
            writable = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            opened.callback(os.close, writable)
            _lock(writable, path)
            _refuse_others(writable, path, len(template), secure_boot)
            os.set_blocking(writable, True)
            # QEMU looks at an image before it opens it to write: a set holds a descriptor for each.
            readable = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, readable)
            code = os.open(firmware.code, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            what = error.filename or path
            raise TransientError(f"{what}: {error.strerror}", reason="FirmwareVariablesUnusable") from error
        opened.pop_all()
    return OpenFirmware((code,), (writable, readable))


def _lock(descriptor: int, path: Path) -> None:
    """Keep a second QEMU away, as image locks do not: flash shares its image with anybody (QEMU, pflash_cfi01.c).

    QEMU inherits this lock with the descriptor, so it is held until QEMU is gone (flock(2)).
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TransientError(f"{path} is in use by another QEMU", reason="FirmwareVariablesUnusable") from error


def _refuse_others(descriptor: int, path: Path, size_bytes: int, secure_boot: bool) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise TransientError(f"{path} is no regular file", reason="FirmwareVariablesUnusable")
    advice = "move it away to begin with new ones"
    if status.st_size != size_bytes:
        message = f"{path} has {status.st_size} bytes, the firmware's variables have {size_bytes}: it was made for"
        raise TransientError(f"{message} another firmware; {advice}", reason="FirmwareVariablesUnusable")
    if secure_boot and not has_platform_key(os.pread(descriptor, size_bytes, 0)):
        message = f"{path} holds no platform key, so Secure Boot would enforce nothing: it was made without it"
        raise TransientError(f"{message}; {advice}", reason="SecureBootKeysMissing")


def has_platform_key(store: bytes) -> bool:
    """Whether a store of variables holds a platform key: then Secure Boot is on, else the firmware is in setup mode."""
    at = store.find(PLATFORM_KEY)
    while at >= 0:
        begin = at - _HEADER_BYTES
        if begin >= 0 and store[begin : begin + 2] == _START and store[begin + 2] == _ADDED:
            return True
        at = store.find(PLATFORM_KEY, at + 1)
    return False


def _create(path: Path, template: bytes) -> None:
    """Appears under its name only when complete and on the storage; what is there by then is left as it is."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(template)
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
