"""The disk that the virtual lab boots from: the Debian tree of the other lab with the cloud kernel's drivers, as ext4.

It lies beside the tree (tests/lab/tree.py), under a name that follows from all that is in it, and is never written to:
each machine writes to a copy that vanishes with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.lab.tree import cache, debian_tree

HERE = Path(__file__).resolve().parent
KERNEL_PACKAGE = HERE.parent.parent / "build/guest/kernel/package.deb"
IMAGE_SIZE = "3G"
"""Sparse: it takes what is in it."""
STEP_TIMEOUT_S = 300
KEPT_S = 24 * 3600

EARLY_DRIVERS = (  # what the root disk and the command agent need, in the order of their dependencies
    *("drivers/virtio/virtio_ring", "drivers/virtio/virtio", "drivers/virtio/virtio_pci_legacy_dev"),
    *("drivers/virtio/virtio_pci_modern_dev", "drivers/virtio/virtio_pci", "drivers/block/virtio_blk"),
    "drivers/char/virtio_console",
)
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for driver in {drivers}; do /bin/busybox insmod /drivers/$driver.ko; done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox umount /proc
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""
AGENT_UNIT = """[Unit]
Description=What the tests outside of this machine speak to
DefaultDependencies=no
Before=sysinit.target

[Service]
ExecStart=/usr/bin/python3 -S /usr/local/lib/vmhost-lab/inside.py
Restart=always
OOMScoreAdjust=-1000
Environment=LC_ALL=C.UTF-8 HOME=/root PAGER=cat PATH=/usr/sbin:/usr/bin:/sbin:/bin

[Install]
WantedBy=sysinit.target
"""
MASKED = (  # each costs seconds of an emulated CPU, and a machine that lives for minutes needs none of them
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "man-db.timer", "e2scrub_all.timer"),
    *("e2scrub_reap.service", "fstrim.timer", "getty.target", "systemd-update-utmp.service", "haproxy.service"),
    *("systemd-pstore.service", "systemd-update-utmp-runlevel.service", "systemd-hwdb-update.service"),
)


@dataclass(frozen=True)
class Image:
    """What QEMU boots: three files."""

    kernel: Path
    initrd: Path
    disk: Path


def lab_image() -> Image:
    """The image, made now if it is not there; of several that ask at once, one makes it."""
    if not KERNEL_PACKAGE.exists():
        raise FileNotFoundError(f"{KERNEL_PACKAGE} is missing: run `make guest` first")
    tree = debian_tree()
    key = hashlib.sha256(tree.name.encode())
    for part in (Path(__file__), HERE / "inside.py", KERNEL_PACKAGE):
        key.update(part.read_bytes())
    folder = cache() / f"image-{key.hexdigest()[:16]}"
    with open(cache() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            print(f"lab: making the virtual lab's disk in {cache()} (600 MB), once", flush=True)
            _make(tree, folder)
    return Image(folder / "vmlinuz", folder / "initrd", folder / "disk")


def _make(tree: Path, folder: Path) -> None:
    for old in folder.parent.glob("image-*"):  # they are large; another checkout may still boot one of today's
        if old.stat().st_mtime < time.time() - KEPT_S:
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as name:
        work = Path(name)
        made, upper = work / "made", work / "upper"
        made.mkdir()
        _run(["dpkg-deb", "-x", str(KERNEL_PACKAGE), str(work / "kernel")])
        (version,) = (work / "kernel/lib/modules").iterdir()
        shutil.copy(work / f"kernel/boot/vmlinuz-{version.name}", made / "vmlinuz")
        _pack_initrd(version, made / "initrd", work / "early")
        _lay_above(upper)
        shutil.copytree(version, upper / "usr/lib/modules" / version.name, symlinks=True)
        _write_disk(tree, upper, version.name, made / "disk", work)
        made.rename(folder)


def _pack_initrd(modules: Path, initrd: Path, root: Path) -> None:
    """The few drivers that the root disk needs, and a busybox to load them."""
    for place in ("bin", "drivers", "proc", "dev", "root"):
        (root / place).mkdir(parents=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise FileNotFoundError("busybox is missing: run `make tools` first")
    shutil.copy(busybox, root / "bin/busybox")
    for driver in EARLY_DRIVERS:
        shutil.copy(modules / "kernel" / f"{driver}.ko", root / "drivers")
    (root / "init").write_text(INIT.format(drivers=" ".join(Path(driver).name for driver in EARLY_DRIVERS)))
    (root / "init").chmod(0o755)
    # Not compressed: an emulated CPU unpacks slower than it reads.
    pack = "find . | cpio --quiet -o -H newc -R 0:0"
    _run(["sh", "-c", f"cd {shlex.quote(str(root))} && {pack} >{shlex.quote(str(initrd))}"])


def _lay_above(upper: Path) -> None:
    """What the image has beyond the tree."""
    units = upper / "etc/systemd/system"
    (units / "sysinit.target.wants").mkdir(parents=True)
    (units / "vmhost-lab.service").write_text(AGENT_UNIT)
    (units / "sysinit.target.wants/vmhost-lab.service").symlink_to("../vmhost-lab.service")
    for unit in MASKED:
        (units / unit).symlink_to("/dev/null")
    program = upper / "usr/local/lib/vmhost-lab/inside.py"
    program.parent.mkdir(parents=True)
    shutil.copy(HERE / "inside.py", program)
    # With an id of its own this is no first boot, which would enable every unit there is.
    (upper / "etc/machine-id").write_text(hashlib.sha256(b"vmhost lab").hexdigest()[:32] + "\n")
    (upper / "etc/hostname").write_text("vmhost-lab\n")
    (upper / "etc/hosts").write_text("127.0.0.1 localhost vmhost-lab\n::1 localhost\n")
    (upper / "etc/fstab").write_text("tmpfs /tmp tmpfs mode=1777 0 0\n")


def _write_disk(tree: Path, upper: Path, version: str, disk: Path, work: Path) -> None:
    """The tree with all that lies above it; an overlay in a mount namespace of its own, so nothing stays mounted."""
    (work / "layer").mkdir()
    (work / "root").mkdir()
    root = shlex.quote(str(work / "root"))
    layers = shlex.quote(f"lowerdir={tree},upperdir={upper},workdir={work / 'layer'}")
    steps = (
        f"mount -t overlay overlay -o {layers} {root}",
        f"chroot {root} /sbin/depmod {shlex.quote(version)}",
        f"{mke2fs(work / 'root', disk, IMAGE_SIZE)}",
    )
    _run(["unshare", "--mount", "--propagation", "private", "sh", "-ec", "\n".join(steps)])


def mke2fs(root: Path, disk: Path, size: str) -> str:
    """The shell command that makes an ext4 of a folder. Without a journal: no such disk outlives its machine."""
    options = ("-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", "lazy_itable_init=1", "-d")
    return shlex.join(["/sbin/mke2fs", *options, str(root), str(disk), size])


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}: exit {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")


if __name__ == "__main__":
    try:
        print(f"lab: the virtual lab's disk is {lab_image().disk}")
    except (OSError, RuntimeError) as error:
        sys.exit(f"lab: {error}")
