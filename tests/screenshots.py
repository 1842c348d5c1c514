"""`make screenshots`: pictures of the status page for docs/images, of a real agent with guests that boot a real Linux.

All of it lives in a network namespace and a mount namespace of its own, on a host that is called `host1` there.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.agent_process import AgentProcess
from tests.browser import PHONE, Browser, chromium
from tests.netns import network_namespace

ROOT = Path(__file__).resolve().parent.parent
GUEST = ROOT / "build" / "guest"
IMAGES = ROOT / "docs" / "images"
PAGE = "http://127.0.0.1:9177/"
MOST_BYTES = 150_000

CLONE_NEWNS, CLONE_NEWUTS = 0x00020000, 0x04000000

NETWORK = """[bridge.br-lan]
addresses = ["192.168.77.1/24"]
nat = true
dhcp = { range = ["192.168.77.100", "192.168.77.150"] }
dns = true
"""
VM = """[vm.{name}]
memory = "128M"
accel = "tcg"
kernel = "/srv/vm/vmlinuz"
initrd = "/srv/vm/initramfs.img"
append = "console=ttyS0 quiet init_on_alloc=0 panic=-1 vmhost.nic0=192.168.77.{last}/24,192.168.77.1"
stop-timeout = "5s"
{more}
[vm.{name}.nic.lan]
bridge = "br-lan"
address = "192.168.77.{last}"
"""


def vm(name: str, last: int, more: str = "") -> str:
    return VM.format(name=name, last=last, more=more)


def show(agent: AgentProcess) -> None:
    """A host on which most is well, one unit is broken, one guest was killed and came back, and an edit waits."""
    agent.drop("network.toml", NETWORK)
    agent.drop("web.toml", vm("web", 10, 'publish = ["80", "443"]'))
    agent.drop("db.toml", vm("db", 11))
    agent.drop("mail.toml", vm("mail", 12, 'publish = ["25"]'))
    agent.drop("build.toml", vm("build", 13, "enabled = false"))
    agent.start()
    agent.drop("web.toml", vm("web", 10, 'cpus = 2\npublish = ["80", "443"]'))
    agent.drop("mail.toml", vm("mail", 12, 'memmory = "256M"'))
    os.kill(int(agent.vm("db")["pid"]), signal.SIGKILL)
    agent.vmhost("wait", "running", "db", "--timeout", "30")
    agent.vmhost("wait", "settled", "--timeout", "30")


def shoot(browser: Browser, size: tuple[int, int], name: str, *, dark: bool) -> None:
    tab = browser.tab(size)
    tab.resize(size, dark=dark)
    tab.open(PAGE)
    tab.until("document.getElementById('live').className === 'on'")
    tab.until("document.querySelector('#vms').innerText.includes('cpus: 1 → 2')")
    path = IMAGES / name
    tab.screenshot(path)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{name} is larger than {MOST_BYTES} bytes")


def main() -> None:
    """Write the pictures, and leave nothing else."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWUTS) != 0:
        raise SystemExit(f"no namespaces: {os.strerror(ctypes.get_errno())}; this needs root")
    for command in ("mount --make-rprivate /", "mount -t tmpfs -o mode=755 tmpfs /srv"):
        subprocess.run(command.split(), check=True)
    libc.sethostname(b"host1", 5)
    folder = Path("/srv/vm")
    folder.mkdir()
    for file in ("vmlinuz", "initramfs.img"):
        shutil.copyfile(GUEST / file, folder / file)
    agent = AgentProcess(folder)
    agent.units.mkdir()
    with network_namespace():
        try:
            show(agent)
            with chromium() as browser:
                shoot(browser, (1080, 1180), "status-page.png", dark=False)
                shoot(browser, PHONE, "status-page-phone.png", dark=True)
        finally:
            agent.end()


if __name__ == "__main__":
    main()
