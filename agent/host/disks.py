"""Disks and the files that a guest boots from: looking, creating, and opening them for a QEMU that may not.

The operator's files keep their owner and mode: QEMU gets open descriptors (qemu(1), `-add-fd`), and its image locks
work on them as on files that it opens itself. Everything here may block on a slow file system: call it from a thread,
but for `create_disk`, which does so itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import stat
import struct
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from agent.core.desired import DiskSpec
from agent.core.errors import ActionError, PermanentError, TransientError

QEMU_IMG = "qemu-img"
CREATE_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class OpenDisk:
    """A disk's descriptors; whoever has this closes them. `block_device`: it is no regular file."""

    fds: tuple[int, ...]
    block_device: bool

    def close(self) -> None:
        """Close the descriptors; QEMU has its own by then."""
        for fd in self.fds:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class DiskLook:
    """What a look at a disk found; `size_bytes` is what a guest sees of it, None where that cannot be told.

    `free_bytes` is what its file system has left; None for a block device. It changes all the time, so two looks that
    differ in nothing else are equal.
    """

    exists: bool
    folder_exists: bool
    size_bytes: int | None = None
    free_bytes: int | None = field(default=None, compare=False)


def look_at_disk(path: str, image_format: str) -> DiskLook:
    """Look at a disk; what cannot be looked at does not exist."""
    if not os.path.exists(path):
        return DiskLook(False, os.path.isdir(os.path.dirname(path)))
    return DiskLook(True, True, _size_in_guest(path, image_format), _free_beneath(path))


def is_file(path: str) -> bool:
    """Whether there is a regular file, links resolved, as `prepare_boot_file` needs one."""
    return os.path.isfile(path)


def _free_beneath(path: str) -> int | None:
    """What unprivileged users, as QEMU is one, may still write to a regular file's file system (statvfs(3))."""
    try:
        if not os.path.isfile(path):
            return None
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _size_in_guest(path: str, image_format: str) -> int | None:
    """A raw image is as large as its file; a qcow2 one says so in its header (QEMU, docs/interop/qcow2.txt)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        if image_format == "raw":
            return status.st_size
        magic, size_bytes = struct.unpack(">4s20xQ", os.pread(descriptor, 32, 0))
        return int(size_bytes) if magic == b"QFI\xfb" else None
    except (OSError, struct.error):
        return None
    finally:
        os.close(descriptor)


_under_way: set[str] = set()
"""Temporaries that this agent is filling right now; any other one is what an interrupted try left."""


async def create_disk(disk: DiskSpec) -> None:
    """Create a disk of `size_bytes`, readable by root only. Where a file exists by then it is left as it is.

    It appears under its name only when it is complete and on the storage. TransientError `DiskMissing` if its folder is
    missing, `NoSpace` and others if the storage refuses; PermanentError if it has no size or qemu-img refuses. Nothing
    is left behind but after a crash; the next try removes that. When cancelled, it is finished in the background.
    """
    if disk.size_bytes is None:
        raise PermanentError(f"{disk.path}: without size = it is not created", reason="DiskMissing")
    await asyncio.to_thread(_create, Path(disk.path), disk.format, disk.size_bytes)


def _create(path: Path, image_format: str, size_bytes: int) -> None:
    prefix = f".{path.name}.vmhost-new-"
    temporary = path.with_name(prefix + uuid.uuid4().hex)
    _under_way.add(str(temporary))
    try:
        _discard_half_made(path.parent, prefix)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        # "file:" keeps a name with a colon from being taken for a protocol (qemu(1)).
        _run_qemu_img(["create", "-q", "-f", image_format, f"file:{temporary}", str(size_bytes)], path)
        _sync(temporary)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    except OSError as error:
        raise _translated(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            _sync(path.parent)
        _under_way.discard(str(temporary))


async def grow_disk(disk: DiskSpec) -> None:
    """Grow a disk that no QEMU has open to `size_bytes`. A larger one stays; TransientError if it cannot be."""
    if disk.size_bytes is not None:
        await asyncio.to_thread(_grow, Path(disk.path), disk.format, disk.size_bytes)


def _grow(path: Path, image_format: str, size_bytes: int) -> None:
    present = look_at_disk(str(path), image_format).size_bytes
    if present is not None and present < size_bytes:
        _run_qemu_img(["resize", "-q", "-f", image_format, f"file:{path}", str(size_bytes)], path)


def _discard_half_made(folder: Path, prefix: str) -> None:
    for entry in list(folder.iterdir()):
        if entry.name.startswith(prefix) and str(entry) not in _under_way:
            entry.unlink(missing_ok=True)


def _run_qemu_img(arguments: list[str], path: Path) -> None:
    try:
        done = subprocess.run(
            [QEMU_IMG, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=CREATE_TIMEOUT_S
        )
    except FileNotFoundError as error:
        message = f"{QEMU_IMG} is not installed (Debian: apt install qemu-utils)"
        raise PermanentError(message, reason="ToolMissing") from error
    except subprocess.TimeoutExpired as error:
        message = f"{path}: qemu-img was not done after {CREATE_TIMEOUT_S:g} s"
        raise TransientError(message, reason="DiskNotMade") from error
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().replace(arguments[-2], str(path))
        # qemu-img tells all failures by the same exit code; one that time may heal is worth a try, with backoff.
        raise TransientError(f"{path}: {why}", reason="NoSpace" if "No space" in why else "DiskNotMade")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_disk(disk: DiskSpec) -> OpenDisk:
    """Open a disk for QEMU: to read, and to read and write unless it is `read_only`; QEMU takes what it needs of both.

    TransientError `DiskMissing` if it is not there, PermanentError if it is neither a file nor a block device.
    """
    fds: list[int] = []
    try:
        modes = (os.O_RDONLY,) if disk.read_only else (os.O_RDWR, os.O_RDONLY)
        # O_NONBLOCK: a pipe of that name would make open(2) wait; on disks it has no effect.
        fds.extend(os.open(disk.path, mode | os.O_CLOEXEC | os.O_NONBLOCK) for mode in modes)
        modes_found = {stat.S_IFMT(os.fstat(fd).st_mode) for fd in fds}
        if modes_found not in ({stat.S_IFREG}, {stat.S_IFBLK}):
            raise PermanentError(f"{disk.path} is neither a regular file nor a block device", reason="DiskUnusable")
        for fd in fds:
            os.set_blocking(fd, True)
        return OpenDisk(tuple(fds), modes_found == {stat.S_IFBLK})
    except OSError as error:
        _close_all(fds)
        raise _translated(error, Path(disk.path)) from error
    except PermanentError:
        _close_all(fds)
        raise


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def prepare_boot_file(path: str, directory: str | Path, uid: int) -> str:
    """A path under which `uid` can read a kernel or initrd: its own if every user may read it, else that of a copy.

    The copy lies in `directory`, readable by `uid` only. TransientError `FileMissing` if the file is not there.
    """
    source = Path(path)
    try:
        if _everybody_reads(source):
            return path
        name = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
        target = Path(directory) / f"boot-{name}"
        _copy(source, target, uid)
    except OSError as error:
        raise _translated(error, source, missing="FileMissing") from error
    return str(target)


def _everybody_reads(path: Path) -> bool:
    """Whether the mode bits let any user read a file and pass all folders above it, links resolved."""
    real = Path(os.path.realpath(path, strict=True))
    folders = {*path.absolute().parents, *real.parents}
    readable = os.stat(real)
    if not stat.S_ISREG(readable.st_mode):
        raise PermanentError(f"{path} is no regular file", reason="FileUnusable")
    return bool(readable.st_mode & stat.S_IROTH) and all(os.stat(folder).st_mode & stat.S_IXOTH for folder in folders)


def _copy(source: Path, target: Path, uid: int) -> None:
    """Copy by way of a temporary that is made afresh: its folder is writable by the guest's own uid."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with source.open("rb") as reading, open(os.open(temporary, flags, 0o400), "wb") as writing:
            shutil.copyfileobj(reading, writing, 1 << 20)
            os.fchown(writing.fileno(), uid, uid)
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def _translated(error: OSError, path: Path, missing: str = "DiskMissing") -> ActionError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return TransientError(f"{path} is not there", reason=missing)
    return TransientError(
        f"{path}: {error.strerror}", reason="FileUnusable" if missing == "FileMissing" else "DiskUnusable"
    )
