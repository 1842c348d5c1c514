"""What `vmhost top` shows and what its keys do, without a terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.cli.screen import has_colour, keys_of
from agent.cli.top import ORDERS
from agent.cli.top_live import pressed
from agent.cli.top_table import COLUMNS, SORT_KEYS, SORTS, View, amount, duration, frame, ordered, per_cent, rows, size
from agent.core.tell.rates import GuestRates

WEB = GuestRates("web", "running", 0.5, 1 << 29, 12.5, 1200, 3, 0.0012, 0.018, None, 5e6, 1e7, 1e5, 2e5)
DB = GuestRates("db", "paused", 1.25, 1 << 30, 1, 1, 1, 0.1, 0.2, 5.0, 0, 0, 0, 0)
BROKEN = GuestRates("a-guest-with-a-very-long-name", "crash-loop")
ALL = [WEB, BROKEN, DB]

WIDE = """\
vmhost top
3 guests, 1 running   cpu 175.0%   iops 1.2k   disk 14MB/s   network 293kB/s
NAME      STATE          CPU%  MEMORY  READ/S  WRITE/S   R-P99   W-P99   F-P99  DISK-R  DISK-W  NET-IN  NET-OUT
db        paused        125.0    1.0G       1        1   100ms   200ms     >5s       0       0       0        0
web       running        50.0    512M      12     1.2k   1.2ms    18ms       -    4.8M    9.5M     98k     195k
shop      crash-loop        -       -       -        -       -       -       -       -       -       -        -

c cpu  m memory  i iops  l latency  d disk  n network  N name  r reverse  q quit"""

USUAL = """\
vmhost top
3 guests, 1 running   cpu 175.0%   iops 1.2k   disk 14MB/s   network 293kB/s
NAME                  STATE          CPU%  READ/S  WRITE/S   R-P99   W-P99
db                    paused        125.0       1        1   100ms   200ms
web                   running        50.0      12     1.2k   1.2ms    18ms
a-guest-with-a-very~  crash-loop        -       -        -       -       -

c cpu  m memory  i iops  l latency  d disk  n network  N name  r reverse  q quit"""

NARROW = """\
vmhost top
3 guests, 1 running   cpu 175.0%   iops 1
NAME         CPU%  MEMORY   R-P99   W-P99
web          50.0    512M   1.2ms    18ms
db          125.0    1.0G   100ms   200ms
a-guest-w~      -       -       -       -

c cpu  m memory  i iops  l latency  d dis"""


@pytest.mark.parametrize(
    ("name", "view", "shown"),
    [
        pytest.param("shop", View(columns=111, lines=8), WIDE, id="all columns"),
        pytest.param(BROKEN.name, View(columns=80, lines=8), USUAL, id="columns go where it is narrow"),
        pytest.param(
            BROKEN.name,
            View("memory", reverse=True, columns=41, lines=8),
            NARROW,
            id="the sorted column stays",
        ),
    ],
)
def test_frames(name: str, view: View, shown: str) -> None:
    assert "\n".join(frame([WEB, replace(BROKEN, name=name), DB], view, "vmhost top")) == shown


@pytest.mark.parametrize("columns", [1, 5, 20, 33, 60, 79, 81, 100, 132, 300])
@pytest.mark.parametrize("lines", [1, 2, 3, 4, 6, 7, 24])
def test_a_frame_never_leaves_its_screen(columns: int, lines: int) -> None:
    found = frame(
        [replace(WEB, name=f"guest-{number}") for number in range(40)], View(columns=columns, lines=lines), "top"
    )
    assert len(found) <= lines
    assert max(map(len, found)) <= columns


def test_colours_change_no_width() -> None:
    plain, coloured = (frame(ALL, View(columns=140, lines=8, colour=colour), "top") for colour in (False, True))
    assert "\x1b[32m  running  " in coloured[4]
    assert "\x1b[31m  crash-loop  " in coloured[5]
    for sgr in ("\x1b[0m", "\x1b[7m", "\x1b[31m", "\x1b[32m", "\x1b[33m"):
        coloured = [line.replace(sgr, "") for line in coloured]
    assert [line.rstrip() for line in coloured] == plain


def test_what_comes_from_outside_drives_no_terminal() -> None:
    (line,) = [line for line in frame([replace(WEB, name="\x1b[2J")], View(), "a\x07b") if "running " in line][1:]
    assert line.startswith("\\x1b[2J ")
    assert frame([], View(), "a\x07b")[0] == "a\\x07b"


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("cpu", ["db", "web", BROKEN.name]),
        ("memory", ["db", "web", BROKEN.name]),
        ("iops", ["web", "db", BROKEN.name]),
        ("latency", ["db", "web", BROKEN.name]),
        ("disk", ["web", "db", BROKEN.name]),
        ("network", ["web", "db", BROKEN.name]),
        ("name", [BROKEN.name, "db", "web"]),
    ],
)
def test_orders(sort: str, names: list[str]) -> None:
    assert [guest.name for guest in ordered(ALL, sort)] == names
    back = [guest.name for guest in ordered(ALL, sort, reverse=True)]
    if sort == "name":
        assert back == names[::-1]
    else:
        assert back == [names[1], names[0], BROKEN.name]  # nothing known comes last in any case


def test_keys_choose_the_order() -> None:
    view = View(offset=5, lines=10)
    for key, sort in (("c", "cpu"), ("i", "iops"), ("l", "latency"), ("d", "disk"), ("n", "network"), ("N", "name")):
        assert pressed(view, key, 40) == View(sort=sort, lines=10)
    assert pressed(view, "m", 40).sort == "memory"
    assert pressed(pressed(view, "r", 40), "r", 40) == View(lines=10)
    assert pressed(view, "x", 40) == view


def test_keys_move_within_the_list() -> None:
    view = View(lines=10)
    assert view.room == 6
    assert pressed(view, "up", 40).offset == 0
    assert pressed(view, "down", 40).offset == 1
    assert pressed(view, "page-down", 40).offset == 6
    assert pressed(view, "end", 40).offset == 34
    assert pressed(pressed(view, "end", 40), "page-up", 40).offset == 28
    assert pressed(pressed(view, "end", 40), "home", 40).offset == 0
    assert pressed(view, "down", 6).offset == 0
    found = frame(
        [replace(WEB, name=f"guest-{number:02}") for number in range(40)], replace(view, sort="name", offset=34), ""
    )
    assert [line.split()[0] for line in found[3:9]] == [f"guest-{number}" for number in range(34, 40)]
    assert found[-1].startswith("35-40 of 40  c cpu")


@pytest.mark.parametrize(
    ("typed", "keys", "rest"),
    [
        (b"ciq", ["c", "i", "q"], b""),
        (b"\x1b[A\x1bOB\x1b[6~q", ["up", "down", "page-down", "q"], b""),
        (b"\x1b[1;5A\x1b[200~x", ["x"], b""),  # Ctrl-Up, and a paste begins: no keys of ours
        (b"c\x1b[", ["c"], b"\x1b["),
        (b"c\x1b", ["c"], b"\x1b"),
        (b"\x1b\x1b[B", ["down"], b""),
        (b"\xff\x00", ["\xff", "\x00"], b""),
    ],
)
def test_what_keys_send(typed: bytes, keys: list[str], rest: bytes) -> None:
    assert keys_of(typed) == (keys, rest)


def test_a_key_in_two_pieces() -> None:
    keys, rest = keys_of(b"\x1b[")
    assert keys_of(rest + b"5~") == (["page-up"], b"")
    assert keys == []


def test_colours_only_where_they_are_welcome() -> None:
    assert has_colour({"TERM": "xterm-256color"})
    assert not has_colour({"TERM": "xterm", "NO_COLOR": "1"})
    assert not has_colour({"TERM": "xterm-mono"})


def test_numbers() -> None:
    assert [amount(one) for one in (None, 0, 0.5, 9.96, 999.4, 999.6, 12345, 999_999, 3.4e8)] == [
        *("-", "0", "0.5", "10", "999", "1.0k", "12k", "1.0M", "340M")
    ]
    assert [size(one) for one in (0, 1023, 1024, 5e6, 1 << 30)] == ["0", "1023", "1.0k", "4.8M", "1.0G"]
    assert [duration(one) for one in (5e-6, 0.0009996, 0.00123, 0.00996, 0.02, 0.9, 1.23, 5.0)] == [
        *("5us", "1.0ms", "1.2ms", "10ms", "20ms", "900ms", "1.2s", ">5s")
    ]
    assert [per_cent(one) for one in (None, 0, 0.5, 9.99, 12)] == ["-", "0.0", "50.0", "999.0", "1200"]


def test_all_orders_have_a_key_and_a_word() -> None:
    assert set(ORDERS) == {*SORTS, "name"} == set(SORT_KEYS.values())


def test_a_plain_table_has_all_columns() -> None:
    titles, cells = rows([WEB])
    assert len(titles) == len(COLUMNS) == len(cells[0])
