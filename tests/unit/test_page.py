"""What the status page shows of a status, and what it does not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agent.core.conditions import Condition
from agent.core.desired import Desired
from agent.core.errors import UnitError
from agent.core.observed import Observed, VmState
from agent.core.planner.approval import Approval
from agent.core.planner.draft import Plan
from agent.core.tell.page import Beside, Line, Published, Row, Table, events_table, tables_of, title_of
from agent.core.tell.rates import GuestRates
from agent.core.tell.status import StatusInputs, status
from agent.telemetry.board import Shown, frame
from agent.telemetry.page import document_of, is_plain_host, span
from tests.unit.test_status import AGENT, BRIDGE, LINKS, NIC, RUNNING, SINCE, WEB, Change, File

SINCE_S = 1767225605
ASKED = "their units want these guests stopped or restarted, more at once than is allowed unasked"
BROKEN = File(
    "/u/b.toml", "held", (UnitError("/u/b.toml", 2, 3, "unknown key 'token=\"abc\"'", 'did you mean "tap"?'),)
)
WORLD = StatusInputs(
    replace(AGENT, started="2026-01-01T00:00:00Z"),
    files=(File("/u/web.toml", "valid"), BROKEN),
    desired=Desired(vms={"web": WEB}, bridges={"br-lan": BRIDGE}),
    observed=Observed(links=LINKS, vms={"web": RUNNING}),
    plan=Plan(approval=Approval("a1b2", ("web",), frozenset())),
    conditions=(
        (Condition("vm/web", "Waiting", "DiskMissing", "waits for password=hunter2"), SINCE),
        (Condition("agent", "StateNotSaved", "StateNotSaved", "disk\nfull"), SINCE),
        (Condition("bridge/br-lan", "RpFilter", "RpFilter", "net.ipv4 drops"), SINCE),
    ),
    pending={"web": (Change("cpus", 1, 2), Change("append", "a", "luks=hunter2"), Change("nic.lan.mtu", "", "9000"))},
    restarts={"web": 3},
)


def tables(inputs: StatusInputs = WORLD, beside: Beside | None = None) -> dict[str, Table]:
    return {table.id: table for table in tables_of(status(inputs), beside or Beside())}


def words(row: Row) -> list[list[str]]:
    return [[line.text for line in cell] for cell in row]


def test_a_guest_with_all_that_can_be_said_of_it() -> None:
    beside = Beside(
        {"web": 1000.4}, {"web": GuestRates("web", "", cpu_ratio=1.254, reads_per_s=40.0, writes_per_s=1.6)}
    )
    row = tables(beside=beside)["vms"].rows["web"]
    assert row[1] == (Line("running", "ok"),)
    assert row[2] == (Line("", "", 1000),)
    assert words(row[3:]) == [
        ["3"],
        ["125 %"],
        ["42"],
        ["Waiting (DiskMissing): waits for password=<redacted>"],
        ["cpus: 1 → 2", "append: changed (`vmhost status` shows the values)", "nic.lan.mtu: not set → 9000"],
    ]


def test_everything_that_is_wrong_is_in_one_table() -> None:
    rows = tables()["wrong"].rows
    assert [words(row)[:3] for row in rows.values()] == [
        [
            ["agent"],
            ["ApprovalNeeded"],
            [f"{ASKED}: web; `vmhost approve a1b2` allows it"],
        ],
        [["/u/b.toml"], ["held"], ["its last good version runs on until it is mended"]],
        [["/u/b.toml:2:3"], ["error"], ["unknown key 'token=<redacted>' (did you mean \"tap\"?)"]],
        [["agent"], ["StateNotSaved"], ["disk\\nfull"]],
        [["bridge/br-lan"], ["RpFilter"], ["net.ipv4 drops"]],
        [["vm/web"], ["Waiting (DiskMissing)"], ["waits for password=<redacted>"]],
    ]
    assert [row[3] for row in rows.values()][3:] == [(Line("", "", SINCE_S),)] * 3
    assert [row[1][0].tone for row in rows.values()] == ["warn", "bad", "bad", "bad", "warn", "bad"]


def test_the_host_in_a_row() -> None:
    assert words(tables()["host"].rows["host"]) == [
        ["settled"], ["1 of 1 running"], ["1 of 2 files with mistakes"], ["1 finding"], ["0.1.0"], [""],
    ]  # fmt: skip
    assert title_of("h", status(WORLD)) == "h: 1/1 running, 6 notices"


def test_nics_bridges_and_published_ports() -> None:
    found = tables(beside=Beside(published=(Published("web", "80", "tcp", True), Published("web", "53", "udp", False))))
    assert words(found["nics"].rows["web/lan"]) == [
        ["web/lan"], ["web-lan"], ["br-lan"], [], ["02:00:00:00:00:01"], ["yes"], [],
    ]  # fmt: skip
    assert words(found["bridges"].rows["br-lan"])[:4] == [["br-lan"], ["up"], ["192.168.0.1/24"], ["web-lan"]]
    assert [words(row) for row in found["published"].rows.values()] == [
        [["80/tcp"], ["web"], ["leads there"]],
        [["53/udp"], ["web"], ["does not lead there"]],
    ]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (RUNNING, "yes"),
        (replace(RUNNING, nics={}), "cannot be seen"),
        (replace(RUNNING, alive=False, pid=None), "guest is off"),
    ],
)
def test_whether_a_nic_is_attached(state: VmState, said: str) -> None:
    inputs = replace(WORLD, observed=Observed(links=LINKS, vms={"web": state}))
    assert words(tables(inputs)["nics"].rows["web/lan"])[5] == [said]
    cut = replace(WORLD, observed=Observed(links={"br-lan": LINKS["br-lan"]}, vms={"web": RUNNING}))
    assert words(tables(cut)["nics"].rows["web/lan"])[5] == ["no"]
    assert NIC.tap == "web-lan"


def test_events_are_cleaned_and_the_latest_goes_first() -> None:
    told = [
        {"seq": 8, "time": "2026-01-01T10:00:00.123+00:00", "resource": "vm/web", "message": "x", "kind": "k"},
        {"seq": 9, "time": "2026-01-01T10:00:01.123+00:00", "resource": "agent", "message": "secret=1", "kind": "k"},
    ]
    table = events_table(told)
    assert list(table.rows) == ["9", "8"]
    assert words(table.rows["9"]) == [["2026-01-01 10:00:01"], ["agent"], ["secret=<redacted>"]]


def test_a_frame_has_what_changed_and_nothing_else() -> None:
    def shown(**rows: str) -> Shown:
        return Shown("t", {"a": Table("a", "A", ("c",), {key: ((Line(text),),) for key, text in rows.items()})})

    def change(before: Shown, after: Shown) -> object:
        text = frame(before, after).decode()
        assert text.startswith("data: ")
        assert text.endswith("\n\n")
        return json.loads(text.removeprefix("data: "))["tables"].get("a")

    before = shown(x="1", y="2")
    assert change(Shown(), before) == {"rows": [["x", [[["1", "", 0]]]], ["y", [[["2", "", 0]]]]], "keys": ["x", "y"]}
    assert change(before, shown(x="1", y="3")) == {"rows": [["y", [[["3", "", 0]]]]]}
    assert change(before, shown(y="2", x="1")) == {"keys": ["y", "x"]}
    assert change(before, shown(y="2")) == {"keys": ["y"]}
    assert change(before, shown()) == {"keys": []}
    assert frame(before, shown(x="1", y="2")) == b""


def test_words_of_others_are_escaped_in_the_document() -> None:
    hostile = "</td><script>alert(1)</script>\"'\udc80\u202e"
    inputs = replace(WORLD, files=(File(hostile, "invalid", (UnitError(hostile, 1, 1, hostile, hostile),)),))
    text = document_of(hostile, Shown(title_of(hostile, status(inputs)), tables(inputs))).decode()
    assert text.count("<script>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\u202e" not in text


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("127.0.0.1:9177", True),
        ("127.0.0.1", True),
        ("[::1]:9177", True),
        ("[::1]", True),
        ("localhost:9177", True),
        ("web01", True),
        ("web01:80", True),
        ("evil.example", False),
        ("evil.example:9177", False),
        ("127.0.0.1.evil.example:9177", False),
        ("localhost.evil.example.", False),
        ("", True),
    ],
)
def test_whose_name_a_request_may_carry(host: str, plain: bool) -> None:
    assert is_plain_host(host) == plain


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-5, "< 1 min"), (59, "< 1 min"), (60, "1 min"), (3600, "1 h 0 min"), (86399, "23 h 59 min"), (90000, "1 d 1 h")],
)
def test_a_span_of_time(seconds: float, said: str) -> None:
    assert span(seconds) == said
