"""A guest's further serial ports: a real guest writes to each kind of them."""

from __future__ import annotations

import os
import subprocess
import sys

from agent.host.logs import LOG_MAX_BYTES
from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST, bare_vm
from tests.integration.test_guest import BOOT_S, unit
from tests.integration.waiting import wait_for
from tests.probe import answers_within, run_in_guest

PORTS = (
    "[vm.web.serial.ctl]\n"
    '[vm.web.serial.log]\nto = "file"\n'
    '[vm.web.serial.modem]\nport = "ttyS2"\n'
    '[vm.web.serial.kernel]\nport = "ttyS1"\nto = "file"\n'
)
FIND = "find() { for p in /sys/class/virtio-ports/*; do grep -qx $1 $p/name && echo /dev/${p##*/}; done; }; "
"""Names are made to /dev/virtio-ports/NAME by udev, which this guest has not."""


def test_a_guest_writes_to_each_of_its_ports(agent: AgentProcess, boot_files: str) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", unit(boot_files) + PORTS)
    agent.start()
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    folder = agent.run_dir / "vms" / "web"
    run_in_guest(GUEST, "echo from the kernel >/dev/ttyS1; " + FIND + "echo from a service >$(find log)")
    wait_for(lambda: (folder / "serial-kernel.log").read_bytes() == b"from the kernel\r\n")
    wait_for(lambda: (folder / "serial-log.log").read_bytes() == b"from a service\n")
    # A virtio port is at its end for as long as nobody is connected.
    answer = "port=$(find ctl); (until read line <$port; do sleep 0.1; done; echo got $line >$port) >/dev/null 2>&1 &"
    run_in_guest(GUEST, FIND + answer)
    assert talk(agent, "ctl", b"over virtio\n") == "got over virtio\n"
    run_in_guest(GUEST, "stty -F /dev/ttyS2 raw -echo; (read l </dev/ttyS2; echo got $l >/dev/ttyS2) >/dev/null 2>&1 &")
    assert talk(agent, "modem", b"over a wire\n").strip() == "got over a wire"
    refused = agent.command("console", "web", "--port", "log")
    assert refused.returncode == 1
    assert "vm web runs without [vm.web.serial.log] on a socket" in refused.stderr

    # Too much for one log and too little for two: once it is put aside, the rest stays where it is.
    run_in_guest(GUEST, FIND + f"head -c {LOG_MAX_BYTES * 3 // 2} /dev/zero >$(find log)", 30)
    wait_for((folder / "serial-log.log.1").exists)
    wait_for(lambda: (folder / "serial-log.log").stat().st_size < LOG_MAX_BYTES)
    former = (folder / "serial-log.log.1").read_bytes()
    assert former.startswith(b"from a service\n")
    assert len(former) == LOG_MAX_BYTES
    agent.vmhost("restart", "web")
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    run_in_guest(GUEST, "echo again >/dev/ttyS1")
    wait_for(lambda: (folder / "serial-kernel.log").read_bytes() == b"from the kernel\r\nagain\r\n")


def talk(agent: AgentProcess, port: str, said: bytes) -> str:
    """Say something to a port by `vmhost console`, as in a pipe."""
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli.main", *agent.flags, "console", "web", "--port", port],
        input=said,
        capture_output=True,
        timeout=30,
        check=True,
    )
    return done.stdout.decode()


def test_what_the_guests_user_put_in_place_of_a_log_is_not_followed(agent: AgentProcess) -> None:
    agent.drop("web.toml", bare_vm("web", '[vm.web.serial.log]\nto = "file"\n'))
    agent.start()
    folder, victim = agent.run_dir / "vms" / "web", agent.folder / "victim"
    uid = os.stat(f"/proc/{agent.vm('web')['pid']}").st_uid
    victim.write_bytes(b"x" * (LOG_MAX_BYTES + 1))
    agent.vmhost("stop", "web")
    log, former = folder / "serial-log.log", folder / "serial-log.log.1"
    log.unlink()
    for link in (log, former):
        link.symlink_to(victim)
        os.lchown(link, uid, uid)
    agent.vmhost("start", "web")
    assert log.is_file()
    assert not log.is_symlink()
    former.unlink(missing_ok=True)
    former.symlink_to(victim)
    log.write_bytes(b"y" * (LOG_MAX_BYTES + 1))
    wait_for(lambda: log.stat().st_size == 0)
    assert victim.read_bytes() == b"x" * (LOG_MAX_BYTES + 1)
    assert former.read_bytes() == b"y" * LOG_MAX_BYTES
