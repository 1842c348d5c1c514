"""The host's UEFI firmware and the guests' variables, with Debian's ovmf and real QEMUs."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.core.errors import TransientError
from agent.host.firmware import DESCRIPTOR_FOLDERS, find_firmware, has_platform_key, open_firmware
from agent.host.launches import Launches
from agent.runtime.execute_vms import open_flash
from tests.qemu import launched, paused_vm

UUID = str(uuid.uuid4())
PLAIN = find_firmware("q35", secure_boot=False)
SECURE = find_firmware("q35", secure_boot=True)


def make(folder: Path, firmware: object = PLAIN, *, secure_boot: bool = False) -> bytes:
    """Open a guest's variables and close them; what is in there."""
    open_firmware(firmware, folder / "firmware", UUID, secure_boot=secure_boot).close()  # type: ignore[arg-type]
    return (folder / "firmware" / f"{UUID}.fd").read_bytes()


async def wait_until(holds: Callable[[], bool]) -> None:
    """Nothing tells what a firmware does, so it is looked for again and again."""
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(holds):
            await asyncio.to_thread(time.sleep, 0.05)


def test_the_host_has_what_its_descriptors_say() -> None:
    assert PLAIN.code != SECURE.code
    assert find_firmware("pc", secure_boot=False) == PLAIN
    assert not has_platform_key(Path(PLAIN.template).read_bytes())
    assert has_platform_key(Path(SECURE.template).read_bytes())


@pytest.mark.parametrize(
    ("machine", "secure_boot", "what"), [("q35", True, "UEFI with Secure Boot"), ("pc", False, "UEFI")]
)
def test_none_is_told_with_the_package(folder: Path, machine: str, secure_boot: bool, what: str) -> None:
    with pytest.raises(TransientError) as missing:
        find_firmware(machine, secure_boot=secure_boot, folders=(str(folder), str(folder / "nowhere")))
    assert missing.value.reason == "FirmwareMissing"
    assert str(missing.value) == f"the host has no {what} firmware for {machine} (Debian: apt install ovmf)"


def test_descriptors_are_hidden_by_name_and_broken_ones_are_passed_over(folder: Path) -> None:
    (original,) = Path(DESCRIPTOR_FOLDERS[-1]).glob("60-*.json")
    descriptor = json.loads(original.read_text())
    for name in ("first", "second"):
        (folder / name).mkdir()
    for name, text in {
        "10-a.json": "{",
        "11-b.json": "[]",
        "12-c.json": "[" * 100_000,
        "13-d.json": '{"mapping": 1}',
    }.items():
        (folder / "first" / name).write_text(text)
    for mode in ("stateless", "combined"):
        other = descriptor | {"mapping": descriptor["mapping"] | {"mode": mode}}
        (folder / "first" / f"20-{mode}.json").write_text(json.dumps(other))
    (folder / "second" / "60-e.json").write_text(json.dumps(descriptor))
    folders = (str(folder / "first"), str(folder / "second"))
    assert find_firmware("q35", secure_boot=False, folders=folders) == PLAIN
    (folder / "first" / "60-e.json").touch()
    with pytest.raises(TransientError):
        find_firmware("q35", secure_boot=False, folders=folders)


def test_variables_are_made_once_and_never_written_over(folder: Path) -> None:
    assert make(folder) == Path(PLAIN.template).read_bytes()
    path = folder / "firmware" / f"{UUID}.fd"
    with path.open("r+b") as file:
        file.write(b"mine")
    assert make(folder)[:4] == b"mine"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_variables_of_another_size_are_left_alone(folder: Path) -> None:
    make(folder)
    path = folder / "firmware" / f"{UUID}.fd"
    os.truncate(path, 131_072)
    with pytest.raises(TransientError) as refused:
        make(folder)
    assert refused.value.reason == "FirmwareVariablesUnusable"
    assert "has 131072 bytes, the firmware's variables have 540672" in str(refused.value)
    assert path.stat().st_size == 131_072


def test_secure_boot_without_keys_is_refused(folder: Path) -> None:
    make(folder)
    with pytest.raises(TransientError) as refused:
        make(folder, SECURE, secure_boot=True)
    assert refused.value.reason == "SecureBootKeysMissing"
    (folder / "firmware" / f"{UUID}.fd").unlink()
    assert has_platform_key(make(folder, SECURE, secure_boot=True))


def test_a_link_is_not_followed(folder: Path) -> None:
    make(folder)
    path = folder / "firmware" / f"{UUID}.fd"
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    with pytest.raises(TransientError):
        make(folder)


async def test_two_guests_share_the_code_and_never_the_variables(folder: Path) -> None:
    launches = Launches(folder)
    launches.open()
    spec, other = paused_vm(name="a", firmware="uefi"), paused_vm(name="b", firmware="uefi")
    opened = ExitStack()
    async with launched(launches, spec, firmware=open_flash(spec, folder / "firmware", opened)) as guest:
        opened.close()
        await guest.monitor()
        with pytest.raises(TransientError) as refused:
            open_flash(spec, folder / "firmware", opened)
        assert str(refused.value) == f"{folder}/firmware/{spec.uuid}.fd is in use by another QEMU"
        async with launched(launches, other, firmware=open_flash(other, folder / "firmware", opened)) as beside:
            flash = await (await beside.monitor()).execute("query-block")
            nodes = {device["inserted"]["node-name"]: device["inserted"]["ro"] for device in flash}
            assert nodes == {"firmware-code": True, "firmware-variables": False}
        opened.close()
    open_flash(spec, folder / "firmware", opened)
    opened.close()


async def test_secure_firmware_writes_its_variables_in_smm(folder: Path) -> None:
    launches = Launches(folder)
    launches.open()
    spec = paused_vm(firmware="uefi", secure_boot=True, memory_mib=128)
    template = await asyncio.to_thread(Path(SECURE.template).read_bytes)
    with ExitStack() as opened:
        sets = open_flash(spec, folder / "firmware", opened)
        async with launched(launches, spec, firmware=sets) as guest:
            monitor = await guest.monitor()
            await monitor.execute("cont")
            path = folder / "firmware" / f"{spec.uuid}.fd"
            await wait_until(lambda: path.read_bytes() != template)
            assert (await monitor.execute("query-status"))["status"] == "running"
