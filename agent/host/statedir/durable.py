"""Writing a file so that a crash of the host leaves its old content or its new one."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file's content so that a crash leaves the old or the new one."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.new")  # short: a unit's name may take all 255 bytes
    try:
        with open(temporary, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
