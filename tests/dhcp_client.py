"""A host on a bridge that asks for addresses and names as guests do: busybox in a network namespace of its own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.netns import ip

SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr flush dev "$interface"
ip addr add "$ip/$mask" dev "$interface"
echo "bound ip=$ip mask=$mask router=$router dns=$dns domain=$domain lease=$lease"
"""
ASK = ("busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "30", "-T", "1", "-s")


class Client:
    """`lease` asks for an address anew; `resolve` asks a server for a name."""

    def __init__(self, pid: int, script: Path) -> None:
        self._enter = ["nsenter", "--net", "--target", str(pid)]
        self._script = script

    def run(self, *command: str, timeout_s: float = 60.0) -> str:
        """What a command says in the client's namespace; whatever it exits with."""
        done = subprocess.run([*self._enter, *command], capture_output=True, text=True, timeout=timeout_s, check=False)
        return done.stdout + done.stderr

    def lease(self, *options: str) -> dict[str, str]:
        """The words of a lease: ip, mask, router, dns, domain, lease. Fails if none is given."""
        said = self.run(*ASK, str(self._script), *options)
        found = re.search(r"^bound (.*)$", said, re.MULTILINE)
        assert found is not None, said
        return dict(word.split("=", 1) for word in found[1].split(" "))

    def resolve(self, name: str, server: str, within_s: float = 20.0) -> list[str]:
        """The addresses of a name, as a server says; none as well where it says nothing within that time."""
        said = self.run("timeout", str(within_s), "busybox", "nslookup", name, server)
        return re.findall(r"^Name:.*\nAddress: (\S+)$", said, re.MULTILINE)


@contextlib.contextmanager
def client_on(bridge: str, mac: str, folder: Path, name: str = "c0") -> Iterator[Client]:
    """A client whose cable is plugged into a bridge; gone at the end, with its namespace."""
    script = folder / f"{name}.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
    try:
        own = Path("/proc/thread-self/ns/net").readlink()
        while Path(f"/proc/{holder.pid}/ns/net").readlink() == own:
            time.sleep(0.002)  # it has no other way to tell
        ip(
            f"link add {name} type veth peer name eth0 address {mac} netns {holder.pid}",
            f"link set {name} master {bridge} up",
        )
        client = Client(holder.pid, script)
        client.run("ip", "link", "set", "eth0", "up")
        yield client
    finally:
        holder.kill()
        holder.wait()
