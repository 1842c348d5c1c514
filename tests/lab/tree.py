"""The Debian tree that labs boot: made once by mmdebstrap, kept outside the checkout, never written to.

It lies in $VMHOST_LAB_CACHE, by default ~/.cache/vmhost-lab, under a name that follows from what is in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SUITE = "bookworm"
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "init-system-helpers"),
    *("python3", "qemu-system-x86", "qemu-utils", "procps"),  # what the package depends on
    *("iproute2", "nftables", "dnsmasq-base", "haproxy"),  # what it recommends, as far as tests want it
    *("iptables", "busybox", "kmod", "man-db"),  # for tests to look and to break things
)
BUILD_TIMEOUT_S = 600


def cache() -> Path:
    """The folder that trees are kept in."""
    chosen = os.environ.get("VMHOST_LAB_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache/vmhost-lab"


def debian_tree() -> Path:
    """The tree, made now if it is not there; of several that ask at once, one makes it."""
    key = hashlib.sha256("\n".join((SUITE, *PACKAGES)).encode()).hexdigest()[:16]
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    tree = folder / f"{SUITE}-{key}"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            print(f"lab: making a Debian tree in {folder} (450 MB), once", flush=True)
            _make(tree)
    return tree


def _make(tree: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix="making-") as folder:
        made = Path(folder, "tree")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(made)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr[-2000:]}")
        shutil.rmtree(made / "var/cache/apt/archives", ignore_errors=True)
        # A lab asks no network and no person; what it says is read from its journal.
        (made / "etc/machine-id").write_text("")
        made.rename(tree)


if __name__ == "__main__":
    print(f"lab: the tree is {debian_tree()}")
