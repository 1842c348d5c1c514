"""A launch that was written is read back exactly, and a file that is not ours is told, never believed."""

from __future__ import annotations

import os
import resource
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.desired import DiskSpec, Limits, NicSpec, VmSpec
from agent.core.edits.digest import digest, pending_changes
from agent.core.errors import TransientError
from agent.host.launches import BrokenLaunch, Launches, LaunchRecord

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
IDS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,14}", fullmatch=True)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}", fullmatch=True)
NUMBERS = st.integers(0, 2**53)
DISKS = st.builds(
    DiskSpec,
    id=IDS,
    path=TEXT,
    format=TEXT,
    slot=NUMBERS,
    size_bytes=st.none() | NUMBERS,
    cache=TEXT,
    read_only=st.booleans(),
)
NICS = st.builds(NicSpec, id=IDS, bridge=TEXT, mac=TEXT, tap=TEXT, slot=NUMBERS, model=TEXT, mtu=NUMBERS)
SPECS = st.builds(
    VmSpec,
    name=NAMES,
    uuid=TEXT,
    uid=NUMBERS,
    file=TEXT,
    cpus=NUMBERS,
    max_cpus=st.none() | NUMBERS,
    balloon_mib=st.none() | NUMBERS,
    memory_mib=NUMBERS,
    cpu=st.none() | TEXT,
    kernel=st.none() | TEXT,
    append=TEXT,
    stop_timeout_s=st.floats(0, 1e9),
    after=st.lists(TEXT, max_size=2).map(tuple),
    description=TEXT,
    enabled=st.booleans(),
    disks=st.lists(DISKS, max_size=2, unique_by=lambda disk: disk.id).map(tuple),
    limits=st.builds(Limits, *(st.none() | NUMBERS for _ in range(4))),
    nics=st.lists(NICS, max_size=2, unique_by=lambda nic: nic.id).map(tuple),
)
RECORDS = st.builds(
    LaunchRecord,
    spec=SPECS,
    generation=NUMBERS,
    reset_generation=NUMBERS,
    digest=TEXT,
    nic_fds=st.dictionaries(IDS, st.lists(NUMBERS, max_size=3).map(tuple), max_size=2),
    detached=st.dictionaries(IDS, st.lists(NUMBERS, max_size=3).map(tuple), max_size=2),
    pid=st.none() | NUMBERS,
    start_time=st.none() | NUMBERS,
    exit_reason=st.none() | TEXT,
    tuned=st.dictionaries(TEXT, TEXT, max_size=2),
)


def launches_in(folder: str, record: LaunchRecord) -> Launches:
    launches = Launches(folder)
    launches.open()
    os.close(launches.lock(record.spec.name, os.getuid()))
    return launches


@settings(max_examples=60)
@given(RECORDS)
def test_round_trip(record: LaunchRecord) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        launches = launches_in(folder, record)
        launches.save(record)
        assert list(launches.read()) == [record]
        moved = launches.rename(record, "renamed!")
        assert list(launches.read()) == [moved] == [replace(record, spec=replace(record.spec, name="renamed!"))]
        launches.forget("renamed!")
        assert list(launches.read()) == []


@settings(max_examples=60)
@given(RECORDS, st.data())
def test_torn_files_are_kept_aside(record: LaunchRecord, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        launches = launches_in(folder, record)
        launches.save(record)
        path = launches.directory(record.spec.name) / "launch.toml"
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) // 3))])
        (found,) = launches.read()
        if isinstance(found, BrokenLaunch):
            assert Path(found.kept_as).exists()
            assert not found.running
            assert list(launches.read()) == []


def test_an_interrupted_rename_is_finished(tmp_path: Path) -> None:
    record = LaunchRecord(VmSpec(name="web", uuid="u", uid=1))
    launches = launches_in(str(tmp_path), record)
    launches.save(record)
    launches.directory("web").rename(launches.directory("www"))
    assert list(launches.read()) == [replace(record, spec=replace(record.spec, name="www"))]


def test_a_rename_that_cannot_be_written_down_changes_nothing(tmp_path: Path) -> None:
    record = LaunchRecord(VmSpec(name="web", uuid="u", uid=1))
    launches = launches_in(str(tmp_path), record)
    launches.save(record)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(TransientError, match="File too large"):
            launches.rename(record, "www")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(launches.read()) == [record]
    renamed = launches.rename(record, "www")
    assert list(launches.read()) == [renamed]


@pytest.mark.parametrize("foreign", ["link", "owner", "pipe", "other"])
def test_records_of_others_are_not_believed(tmp_path: Path, foreign: str) -> None:
    record = LaunchRecord(VmSpec(name="web", uuid="u", uid=1))
    launches = launches_in(str(tmp_path), record)
    launches.save(record)
    path = launches.directory("web") / "launch.toml"
    if foreign == "link":
        path.rename(tmp_path / "x")
        path.symlink_to(tmp_path / "x")
    elif foreign == "owner":
        os.chown(path, 12345, 12345)
    elif foreign == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_text("[spec]\nname = 3\n")
    held = launches.lock("web", os.getuid())
    (found,) = launches.read()
    assert isinstance(found, BrokenLaunch)
    assert found.running
    assert found.kept_as.endswith("launch.toml.broken-1")
    (again,) = launches.read()
    assert again == BrokenLaunch("web", "it runs without a record", "", running=True)
    os.close(held)


@settings(max_examples=200)
@given(SPECS, SPECS)
def test_the_digest_says_whether_anything_is_pending(one: VmSpec, other: VmSpec) -> None:
    mixed = replace(one, nics=other.nics, description=other.description)
    for wanted in (one, other, mixed):
        assert (pending_changes(one, wanted) == ()) == (digest(one) == digest(wanted))
