"""What waits for what, as unit files say it: each value, each mistake in its words, and what specs make of them."""

from __future__ import annotations

import pytest

from agent.core.references import endpoint, guests_of, place, split_endpoint
from agent.unitfile.parse import parse_unit
from tests.unit.unit_directory import Directory, said

WANTED = 'must be "vm:NAME", "path:/PATH" or "tcp:ADDRESS:PORT"'
READY = 'must be "running", "tcp:PORT" or "tcp:ADDRESS:PORT"'
ADDRESS = 'must be an address such as "192.168.0.100"'


def errors_of(text: str) -> list[str]:
    return [str(error) for error in parse_unit("u.toml", text.encode()).errors]


@pytest.mark.parametrize(
    ("value", "canonical"),
    [
        ("vm:firewall", "vm:firewall"),
        ("path:/srv/disk", "path:/srv/disk"),
        ("path:/srv/disks/", "path:/srv/disks"),
        ("tcp:192.168.0.1:53", "tcp:192.168.0.1:53"),
        ("tcp:[FD00:0::1]:053", "tcp:[fd00::1]:53"),
        ("tcp:127.0.0.1:65535", "tcp:127.0.0.1:65535"),
    ],
)
def test_after_takes(value: str, canonical: str) -> None:
    unit = parse_unit("u.toml", f'[vm.web]\nafter = ["{value}"]\n'.encode())
    assert (unit.errors, unit.vms["web"].after) == ((), (canonical,))


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ('"db"', f'{WANTED}, not "db" (did you mean "vm:db"?)'),
        ('"/srv"', f'{WANTED}, not "/srv" (did you mean "path:/srv"?)'),
        ('"bridge:br0"', f'{WANTED}, not "bridge:br0"'),
        ("3", f"{WANTED}, not 3"),
        ('"vm:a b"', f'{WANTED}, not "vm:a b"'),
        ('"path:srv"', 'names a path that must be an absolute path such as "/srv/vm/web.qcow2", not "srv"'),
        ('"tcp:10.0.0.1"', f'{WANTED} with a port of 1 to 65535, not "tcp:10.0.0.1"'),
        ('"tcp:10.0.0.1:0"', f'{WANTED} with a port of 1 to 65535, not "tcp:10.0.0.1:0"'),
        ('"tcp:10.0.0.1:65536"', f'{WANTED} with a port of 1 to 65535, not "tcp:10.0.0.1:65536"'),
        ('"tcp:db:53"', f'{WANTED}, not "tcp:db:53" (write the address itself: names are not looked up)'),
        ('"tcp:fd00::1:53"', f'{WANTED}, not "tcp:fd00::1:53" (did you mean "tcp:[fd00::1]:53"?)'),
        ('"tcp:[10.0.0.1]:53"', f'{WANTED}, not "tcp:[10.0.0.1]:53" (did you mean "tcp:10.0.0.1:53"?)'),
        (
            '"tcp:0.0.0.0:1"',
            f'{WANTED} with an address that can be connected to, not "tcp:0.0.0.0:1"',
        ),
    ],
)
def test_after_refuses(after: str, message: str) -> None:
    assert errors_of(f"[vm.web]\nafter = [{after}]\n") == [f"u.toml:2:10: error: after {message}"]


@pytest.mark.parametrize(
    ("ready", "message"),
    [
        ('"on"', f'{READY}, not "on"'),
        ('"22"', f'{READY}, not "22" (did you mean "tcp:22"?)'),
        ("22", f'{READY}, not 22 (did you mean "tcp:22"?)'),
        ("true", f"{READY}, not true"),
        ('"tcp:70000"', f'{READY} with a port of 1 to 65535, not "tcp:70000"'),
        ('"tcp:db:1"', f'{READY}, not "tcp:db:1" (write the address itself: names are not looked up)'),
    ],
)
def test_ready_refuses(ready: str, message: str) -> None:
    assert errors_of(f"[vm.web]\nready = {ready}\n") == [f"u.toml:2:1: error: ready {message}"]


def test_a_port_of_the_guests_own_needs_an_address() -> None:
    hint = 'add address = "192.168.0.100" to one, or write ready = "tcp:ADDRESS:22"'
    expected = [f'u.toml:2:1: error: ready = "tcp:22" needs a NIC with an address ({hint})']
    assert errors_of('[vm.web]\nready = "tcp:22"\n') == expected
    assert errors_of('[vm.web]\nready = "tcp:22"\n[vm.web.nic.lan]\nbridge = "br0"\n') == expected
    assert errors_of('[vm.web]\nready = "tcp:22"\n[vm.web.nic.lan]\nbridge = "br0"\naddress = "10.0.0.5"\n') == []
    assert errors_of('[vm.web]\nready = "tcp:10.0.0.5:22"\n') == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ('"10.0.0.5/24"', f'{ADDRESS} without prefix, not "10.0.0.5/24" (did you mean "10.0.0.5"?)'),
        ('"web"', f'{ADDRESS}, not "web"'),
        ('"224.0.0.1"', 'must be an address for a guest, not "224.0.0.1"'),
        ('"::1"', 'must be an address for a guest, not "::1"'),
        ("5", "must be an address or an array of them, not 5"),
        ('["10.0.0.5", "10.0.0.5"]', 'names "10.0.0.5" twice'),
    ],
)
def test_address_refuses(address: str, message: str) -> None:
    text = f'[vm.web.nic.lan]\nbridge = "br0"\naddress = {address}\n'
    assert errors_of(text) == [f"u.toml:3:1: error: address {message}"]


def test_specs_have_references_addresses_and_a_readiness_with_its_address() -> None:
    unit = """[bridge.br0]
[vm.db]
ready = "tcp:5432"
ready-timeout = "90s"
[vm.db.nic.none]
bridge = "br0"
[vm.db.nic.lan]
bridge = "br0"
address = ["FD00::5", "10.0.0.5"]
[vm.web]
after = ["vm:db", "path:/srv/disk", "tcp:10.0.0.1:53"]
"""
    result = Directory().save(a=unit)
    assert said(result) == []
    db, web = result.desired.vms["db"], result.desired.vms["web"]
    assert (db.ready, db.ready_timeout_s) == ("tcp:[fd00::5]:5432", 90.0)
    assert {nic.id: nic.address for nic in db.nics} == {"none": (), "lan": ("fd00::5", "10.0.0.5")}
    assert web.after == ("vm:db", "path:/srv/disk", "tcp:10.0.0.1:53")
    assert (web.ready, web.ready_timeout_s) == ("running", 120.0)


def test_a_guest_that_is_gone_is_waited_for_no_more_and_the_rest_is() -> None:
    directory = Directory()
    directory.save(x='[vm.web]\nafter = ["tcp:10.0.0.1:53", "vm:db", "path:/srv"]\n', y="[vm.db]\n")
    assert directory.save(y=None).desired.vms["web"].after == ("tcp:10.0.0.1:53", "path:/srv")


def test_a_reference_says_what_it_is() -> None:
    for host, port in (("10.0.0.1", 53), ("fd00::1", 443)):
        assert split_endpoint(endpoint(host, port)) == (host, port)
    assert guests_of(("vm:a", "path:/b", "tcp:10.0.0.1:1", "c")) == ("a", "c")
    assert [place(one) for one in ("path:/srv/a:b", "tcp:[fd00::1]:53")] == ["/srv/a:b", "[fd00::1]:53"]
