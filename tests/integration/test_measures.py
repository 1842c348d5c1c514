"""What is measured of real guests, and that one that hangs is nobody else's trouble."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping

from agent.core.measures import LATENCY_BOUNDS_S, DiskMeasure, GuestMeasure, ReachMeasure
from agent.runtime.clock import now_s
from tests.agent_process import AgentProcess
from tests.integration.conftest import BRIDGE, BRIDGE_LINK, GUEST, bare_vm
from tests.integration.test_guest import BOOT_S
from tests.measuring import measuring
from tests.probe import answers_within, run_in_guest

INTERVAL_S = 1.0
CALM_S = 3.0
"""An interval of which a stall of this machine takes no three."""

WRITES, IOPS = 20, 5


def two_disks(agent: AgentProcess, name: str) -> str:
    """A guest without kernel, with a disk and an empty CD-ROM drive on each bus."""
    return bare_vm(name) + (
        f'[vm.{name}.disk.data]\npath = "{agent.folder}/{name}.qcow2"\nsize = "64M"\n'
        f'[vm.{name}.disk.cd]\nmedia = "cdrom"\n[vm.{name}.disk.dvd]\nmedia = "cdrom"\nbus = "virtio"\n'
    )


async def test_a_guest_is_measured_and_a_hung_one_goes_alone(agent: AgentProcess) -> None:
    for name in ("one", "two", "three"):
        agent.drop(f"{name}.toml", two_disks(agent, name))
    agent.start()
    agent.terminate()
    async with measuring(agent, CALM_S) as seen:

        def latest() -> Mapping[str, GuestMeasure]:
            return seen.measures.latest

        await seen.until(lambda: latest().keys() == {"one", "two", "three"})
        await seen.until(lambda: any(disk.disk == "data" and disk.operations["read"] for disk in latest()["two"].disks))
        first = latest()["two"]
        assert first.vcpus == 1
        assert first.vcpu_delay_s is not None
        assert first.resident_bytes is not None
        assert first.resident_bytes > 10 << 20
        assert first.balloon_bytes == 32 << 20
        assert sum(first.cpu_s.values()) > 0.0
        disks = {disk.disk: disk for disk in first.disks}
        assert disks.keys() == {"data", "cd", "dvd"}
        assert disks["data"].capacity_bytes == 64 << 20
        assert 0 < (disks["data"].allocated_bytes or 0) < 1 << 20
        assert disks["cd"].capacity_bytes is None
        for disk in disks.values():
            assert {op: one.bounds_s for op, one in disk.latency.items()} == dict.fromkeys(
                ("read", "write", "flush"), LATENCY_BOUNDS_S
            )
        data = disks["data"]
        assert data.operations["read"] > 0, "its firmware has looked for a system there"
        for op, one in data.latency.items():
            assert sum(one.counts) == data.operations[op] + data.errors[op]
            assert one.sum_s == data.io_time_s[op]

        process = seen.guest("two").process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(60.0):
                while "two" in latest():
                    assert {"one", "three"} <= latest().keys()
                    await asyncio.sleep(0.02)
            gone_s = now_s()
            await seen.until(lambda: all(latest()[name].at_s > gone_s for name in ("one", "three")))
        finally:
            os.kill(process.pid, signal.SIGCONT)
        await seen.until(lambda: "two" in latest())
        process.signal(signal.SIGKILL)
        await seen.until(lambda: not seen.guest("two").alive)
        assert "two" not in latest()
        await seen.until(lambda: latest().keys() == {"one", "three"})


def guest_with_slow_disk(agent: AgentProcess, boot_files: str, more: str = "") -> str:
    """A guest that boots, with a disk of five operations a second: 200 ms each, beside which a slow CPU is quick."""
    return (
        f'[vm.web]\nmemory = "160M"\naccel = "tcg"\nstop-timeout = "1s"\n{boot_files}'
        f'[vm.web.disk.slow]\npath = "{agent.folder}/slow.raw"\nsize = "64M"\ncache = "none"\niops = {IOPS}\n'
        f'[vm.web.nic.lan]\nbridge = "br-test"\naddress = "{GUEST}"\n{more}'
    )


def counted(disk: DiskMeasure) -> dict[str, int]:
    return {op: sum(one.counts) for op, one in disk.latency.items()}


async def in_guest(command: str) -> str:
    return await asyncio.to_thread(run_in_guest, GUEST, command, 60.0)


async def test_disks_memory_and_nics_of_a_guest_that_works(agent: AgentProcess, boot_files: str) -> None:
    agent.drop("net.toml", BRIDGE)
    agent.drop("web.toml", guest_with_slow_disk(agent, boot_files))
    agent.start()
    answers_within(GUEST, BOOT_S, BRIDGE_LINK)
    agent.terminate()
    async with measuring(agent) as seen:  # which looks only when it is asked to
        before = await seen.disk("web", "slow")
        assert before.operations["read"] > 0, "its kernel has looked for partitions"
        assert counted(before) == before.operations, "counted from the first read on"

        # A burst is free, so the first ones are not throttled.
        await in_guest("dd if=/dev/zero of=/dev/vda bs=64k count=5 oflag=direct 2>/dev/null")
        before = await seen.disk("web", "slow")
        began_s = now_s()
        await in_guest(f"dd if=/dev/zero of=/dev/vda bs=64k count={WRITES} oflag=direct conv=fsync 2>/dev/null")
        passed_s = now_s() - began_s
        after = await seen.disk("web", "slow")
        assert after.written_bytes - before.written_bytes == WRITES * 64 * 1024
        assert after.operations["write"] - before.operations["write"] == WRITES
        assert after.operations["flush"] > before.operations["flush"]
        assert counted(after) == after.operations
        took_s = after.latency["write"].sum_s - before.latency["write"].sum_s
        assert 0.5 * WRITES / IOPS < took_s <= passed_s, "one after another, as many a second as they may be"
        old, new = before.latency["write"].counts, after.latency["write"].counts
        bins = [later - earlier for earlier, later in zip(old, new, strict=True)]
        median = next(at for at in range(len(bins)) if sum(bins[: at + 1]) >= WRITES / 2)
        assert LATENCY_BOUNDS_S[median - 1] < 1 / IOPS < LATENCY_BOUNDS_S[median], bins

    async with measuring(agent, INTERVAL_S) as seen:
        await seen.until(lambda: seen.measures.latest["web"].guest_memory_bytes, 120.0)  # it tells each 30 s
        memory = seen.measures.latest["web"].guest_memory_bytes
        assert memory.keys() == {"free", "available", "total"}
        assert memory["free"] < memory["total"] < 160 << 20
        assert seen.measures.latest["web"].balloon_bytes == 160 << 20

        def reach() -> ReachMeasure:
            (one,) = seen.measures.latest["web"].reach
            return one

        await seen.until(lambda: reach().learnt and reach().seconds is not None)
        answered = reach()
        assert answered.seconds is not None
        await seen.until(lambda: sum(reach().seconds.counts) > sum(answered.seconds.counts) + 3)  # type: ignore[union-attr]
        answered = reach()
        assert answered.seconds is not None
        assert answered.unanswered <= sum(answered.seconds.counts), "where it is not held up, each is answered"
        await in_guest("ip link set eth0 arp off; (sleep 15; ip link set eth0 arp on) >/dev/null 2>&1 &")
        await seen.until(lambda: reach().unanswered > answered.unanswered)
        again_from = reach()
        assert again_from.seconds is not None
        await seen.until(lambda: sum(reach().seconds.counts) > sum(again_from.seconds.counts))  # type: ignore[union-attr]

    agent.drop("web.toml", guest_with_slow_disk(agent, boot_files, more_disk(agent)))
    agent.start()
    agent.vmhost("wait", "in-sync", "--timeout", "60")
    agent.terminate()
    async with measuring(agent) as seen:
        again = await seen.disk("web", "slow")
        assert all(counted(again)[op] >= counted(after)[op] for op in counted(after)), "none was lost with two agents"
        assert again.latency["write"].sum_s >= after.latency["write"].sum_s
        await in_guest("dd if=/dev/zero of=/dev/vdb bs=4k count=10 oflag=direct conv=fsync 2>/dev/null")
        more = await seen.disk("web", "more")
        assert more.operations["write"] == 10
        assert more.operations["flush"] > 0
        assert more.operations["read"] > 0, "its kernel has looked for partitions when it came"
        assert counted(more) == more.operations


def more_disk(agent: AgentProcess) -> str:
    return f'[vm.web.disk.more]\npath = "{agent.folder}/more.raw"\nsize = "64M"\n'


async def test_a_disk_that_is_counted_later_is_so_from_then_on_also_for_the_next_agent(agent: AgentProcess) -> None:
    agent.drop("one.toml", two_disks(agent, "one"))
    agent.start()
    agent.terminate()
    async with measuring(agent) as seen:
        whole = await seen.disk("one", "data")
        async with asyncio.timeout(60.0):
            while not whole.operations["read"]:
                await asyncio.sleep(0.1)  # its firmware has not come to its disk yet
                whole = await seen.disk("one", "data")
        assert whole.latency["read"].sum_s > 0.0
        # As a QEMU is that an earlier version started.
        path = "/machine/peripheral/disk-data/virtio-backend"
        await seen.guest("one").execute("block-latency-histogram-set", {"id": path})
        assert (await seen.disk("one", "data")).latency == {}
        later = await seen.disk("one", "data")
        assert (sum(later.latency["read"].counts), later.latency["read"].sum_s) == (0, 0.0)
        assert later.io_time_s["read"] >= whole.io_time_s["read"] > 0.0
    async with measuring(agent) as seen:
        again = await seen.disk("one", "data")
        assert again.latency["read"] == later.latency["read"], "nothing is set again, nor counted from elsewhere"
