"""The log as entries of systemd's journal, against a real datagram socket."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from agent.telemetry import journal, journald
from agent.telemetry.journal import Journal, set_up_logging
from agent.telemetry.journald import JournaldHandler, entry, field_name, fields_of, is_journal

Entry = dict[str, str]


class Receiver:
    """What journald would get: it reads datagrams, and files in their place."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(30)

    def raw(self) -> bytes:
        data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 20, 4)
        if not descriptors:
            return data
        assert data == b""
        (descriptor,) = descriptors
        with open(descriptor, "rb") as file:
            file.seek(0)
            return file.read()

    def entry(self) -> Entry:
        return parsed(self.raw())


def parsed(data: bytes) -> Entry:
    """An entry as systemd reads it (journal-importer.c)."""
    found = {}
    while data:
        line, data = data.split(b"\n", 1)
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", data)
            value, end = data[8 : 8 + length], data[8 + length : 9 + length]
            assert end == b"\n"
            data = data[9 + length :]
        found[name.decode()] = value.decode()
    return found


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    found = Receiver(tmp_path / "socket")
    yield found
    found.socket.close()


@pytest.fixture
def stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Logging set up as under systemd, with the journal's socket elsewhere; what is left for stderr."""
    path, root = tmp_path / "stderr", logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with open(path, "w") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        monkeypatch.setattr(journal, "JournaldHandler", lambda out: JournaldHandler(out, tmp_path / "socket"))
        set_up_logging(stream)
        yield path
        for handler in root.handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("stderr")
async def test_an_event_has_its_fields(receiver: Receiver) -> None:
    Journal().record("tap/web/lan", "repaired", "repaired tap/web/lan", level="warning", seconds=0.0092, ok=True)
    assert receiver.entry() == {
        "MESSAGE": "repaired tap/web/lan",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "vmhost-agent",
        "SYSLOG_FACILITY": "3",
        "VMHOST_RESOURCE": "tap/web/lan",
        "VMHOST_KIND": "repaired",
        "VMHOST_SECONDS": "0.0092",
        "VMHOST_OK": "true",
        "VMHOST_VM": "web",
        "OBJECT_SYSTEMD_UNIT": "vmhost-vm-web.service",
    }


@pytest.mark.usefixtures("stderr")
def test_a_bug_has_its_traceback_where_it_shows_and_its_place(receiver: Receiver) -> None:
    try:
        raise ValueError("a bug")
    except ValueError:
        structlog.get_logger("vmhost.reconcile").exception("bug in an action", action="x")
    found = receiver.entry()
    assert found["MESSAGE"].startswith("bug in an action\nTraceback (most recent call last):\n")
    assert found["MESSAGE"].endswith("ValueError: a bug")
    assert (found["PRIORITY"], found["VMHOST_ACTION"], found["VMHOST_RESOURCE"]) == ("3", "x", "agent")
    assert found["CODE_FILE"] == __file__
    assert found["CODE_FUNC"] == "test_a_bug_has_its_traceback_where_it_shows_and_its_place"


@pytest.mark.usefixtures("stderr")
def test_libraries_lines_are_entries_too(receiver: Receiver) -> None:
    logging.getLogger("aiohttp.server").warning("something %s", "odd")
    assert receiver.entry()["MESSAGE"] == "something odd"


@pytest.mark.usefixtures("stderr")
def test_newlines_go_in_the_binary_form(receiver: Receiver) -> None:
    structlog.get_logger("vmhost").warning("odd", why="two\nlines")
    raw = receiver.raw()
    assert b"\nVMHOST_WHY\n" + struct.pack("<Q", 9) + b"two\nlines\n" in b"\n" + raw
    assert parsed(raw)["VMHOST_WHY"] == "two\nlines"


@pytest.mark.usefixtures("stderr")
def test_what_no_datagram_holds_goes_as_a_sealed_file(receiver: Receiver) -> None:
    long = "x" * (16 << 20)
    structlog.get_logger("vmhost").warning("long", why=long)
    data, descriptors, _, _ = socket.recv_fds(receiver.socket, 1 << 20, 4)
    assert (data, len(descriptors)) == (b"", 1)
    with open(descriptors[0], "rb") as file:
        file.seek(0)
        assert parsed(file.read())["VMHOST_WHY"] == long
        with pytest.raises(PermissionError):
            os.ftruncate(file.fileno(), 0)
    structlog.get_logger("vmhost").warning("and on")
    assert receiver.entry()["MESSAGE"] == "and on"


def test_a_journal_that_is_gone_leaves_lines_for_stderr(receiver: Receiver, stderr: Path, tmp_path: Path) -> None:
    receiver.socket.close()
    structlog.get_logger("vmhost").warning("nobody hears")
    (tmp_path / "socket").unlink()
    structlog.get_logger("vmhost").warning("nobody there")
    assert [json.loads(line)["event"] for line in stderr.read_text().splitlines()] == ["nobody hears", "nobody there"]


@pytest.mark.timeout(60)
def test_a_journal_that_is_full_keeps_nobody_waiting(receiver: Receiver, tmp_path: Path) -> None:
    """Neither its socket nor its stream takes more: lines are counted, and told of when it takes them again."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open(ours.fileno(), "w", closefd=False) as stream:
        handler = JournaldHandler(stream, tmp_path / "socket")
        handler.setFormatter(logging.Formatter('{"event": "%(message)s"}'))
        record = logging.LogRecord("vmhost", logging.INFO, "", 0, "x" * 1000, (), None)
        while not handler._lost:
            handler.emit(record)
        handler.emit(record)
        told = 0
        while not told:
            told = int(receiver.entry().get("VMHOST_LOST_LINES", 0))
            handler.emit(record)
        assert told >= 2
        handler.close()


def test_which_stream_is_the_journals(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as stream:
        found = os.fstat(stream.fileno())
        assert is_journal(stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        assert not is_journal(stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
        assert not is_journal(stream, {"JOURNAL_STREAM": "nonsense"})
        assert not is_journal(stream, {})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})


def test_names_are_those_that_journald_takes() -> None:
    assert field_name("exit-code") == "VMHOST_EXIT_CODE"
    assert field_name("höhe") == "VMHOST_H_HE"
    assert len(field_name("x" * 100)) == journald.MAX_FIELD_NAME


def test_what_is_no_text_survives() -> None:
    assert parsed(entry({"MESSAGE": "lone \ud800"})) == {"MESSAGE": "lone ?"}
    found = fields_of({"event": "e", "level": "odd", "resource": "bridge/br-lan", "number": None, "list": [1, 2]})
    assert found["PRIORITY"] == "6"
    assert found["VMHOST_LIST"] == "[1, 2]"
    assert "VMHOST_NUMBER" not in found
    assert "VMHOST_VM" not in found
