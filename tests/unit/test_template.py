"""Unit files to begin with: as a person would write them, and always what was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.unitfile.parse import parse_unit
from agent.unitfile.template import BadValueError, DiskWish, UnitWish, parse_disk_wish, unit_text
from agent.unitfile.values import MAX_APPEND_BYTES

WHOLE = """\
#:schema ./schema.json
[bridge.br-lan]
# ports = ["eth1"]                 # host links to enslave; none: an isolated bridge
# addresses = ["192.168.0.1/24"]   # the host's own addresses on it

[vm.web]
cpus = 2
memory = "1G"
kernel = "/srv/vmlinuz"
append = "root=/dev/vda"
# restart = "always"               # or on-failure (as it is now), never

[vm.web.disk.root]
path = "/srv/web.qcow2"
size = "32G"

[vm.web.disk.data1]
path = "/dev/sdb"
format = "raw"

[vm.web.nic.lan]
bridge = "br-lan"
"""


def test_a_whole_unit() -> None:
    wish = UnitWish(
        "web",
        cpus=2,
        memory="1G",
        disks=(DiskWish("/srv/web.qcow2", "32G"), DiskWish("/dev/sdb")),
        bridge="br-lan",
        own_bridge=True,
        kernel="/srv/vmlinuz",
        append="root=/dev/vda",
        schema="./schema.json",
    )
    assert unit_text(wish) == WHOLE
    assert not parse_unit("web.toml", WHOLE.encode()).errors


def test_the_comments_are_correct_once_they_are_code() -> None:
    unit = parse_unit("web.toml", WHOLE.replace("\n# ", "\n").encode())
    assert unit.errors == ()
    assert (unit.bridges["br-lan"].ports, unit.vms["web"].restart) == (("eth1",), "always")


PLAIN = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=40)


@given(path=PLAIN.map(lambda text: f"/{text}.img"), append=PLAIN.filter(lambda text: len(text) < MAX_APPEND_BYTES))
def test_whatever_is_asked_for_is_what_is_read(path: str, append: str) -> None:
    text = unit_text(UnitWish("web", disks=(DiskWish(path),), kernel="/k", append=append))
    unit = parse_unit("web.toml", text.encode())
    if not unit.errors:
        assert (unit.vms["web"].disk["root"].path, unit.vms["web"].append) == (path, append)
    assert len(path) > 60 or not [error for error in unit.errors if error.problem.startswith("not TOML")]


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("/a.img", DiskWish("/a.img")),
        ("/a.img:32G", DiskWish("/a.img", "32G")),
        ("/dev/disk/by-path/pci-0000:00:1f.2/x", DiskWish("/dev/disk/by-path/pci-0000:00:1f.2/x")),
    ],
)
def test_disks(text: str, wish: DiskWish) -> None:
    assert parse_disk_wish(text) == wish


@pytest.mark.parametrize("text", ["a.img", "/a.img:", "/a.img:32", "/a.img:0G", ":1G", ""])
def test_no_disks(text: str) -> None:
    with pytest.raises(BadValueError):
        parse_disk_wish(text)
