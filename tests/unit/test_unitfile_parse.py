"""One unit file: every mistake at its place, word for word, read as its writer sees it."""

from __future__ import annotations

import pytest

from agent.unitfile.parse import MAX_ERRORS, parse_unit
from agent.unitfile.schema import UnitFile
from tests.every_key import EVERY_KEY


def errors_of(text: str | bytes) -> list[str]:
    unit = parse_unit("u.toml", text.encode() if isinstance(text, str) else text)
    return [str(error) for error in unit.errors]


def test_every_key_is_taken() -> None:
    unit = parse_unit("u.toml", EVERY_KEY)
    assert unit.errors == ()
    web, bridge = unit.vms["web"], unit.bridges["br-lan"]
    assert (web.memory, web.stop_timeout, web.after) == (1024, 300.0, ("vm:db",))
    assert (web.cpu_weight, web.cpu_quota, web.io_weight, web.tasks) == (200, 150, 50, 82)
    assert (web.extra_args, web.vnc) == (("-device", "a,b=c", "-device", "a"), "127.0.0.1:1")
    assert web.uuid == "6b6c4b0e-1d2f-4c58-9d1b-2f6c5d0a7e11"
    assert (web.max_cpus, web.balloon, web.nic["lan"].link) == (2, 512, "down")
    assert (web.disk["root"].iops, web.disk["root"].bandwidth) == (500, 50 << 20)
    assert (web.disk["root"].size, web.nic["lan"].mac) == (32 << 30, "de:ad:be:ef:32:10")
    assert bridge.ports == ("eth1", "mac:52:54:00:aa:00:01", "pci:0000:0a:00.1")
    assert bridge.addresses == ("192.168.0.1/24", "fd00::1/64")


def test_five_mistakes_are_five_errors_each_at_its_place() -> None:
    text = (
        "# a comment\n"
        "[bridge.br-lan]\n"
        'ports = ["eth1", "eth/2"]\n'
        "mtu = 20\n"
        "\n"
        '[vm."we b"]\n'
        "[vm.web]\n"
        'memroy = "1G"\n'
        'accel = "kvmm" # ä\n'
    )
    assert errors_of(text) == [
        'u.toml:3:18: error: ports must be a link name without "/", not "eth/2"',
        "u.toml:4:1: error: mtu must be a whole number, 68 to 65535, not 20",
        (
            "u.toml:6:5: error: the name of a guest must be 1 to 63 letters, digits, - and _, beginning with a letter "
            'or digit, not "we b"'
        ),
        'u.toml:8:1: error: unknown key "memroy" in [vm.web] (did you mean "memory"?)',
        'u.toml:9:1: error: accel must be "auto", "kvm" or "tcg", not "kvmm" (did you mean "kvm"?)',
    ]


NIC_MISTAKES = {
    "rate-in = 10": 'rate-in must be a rate such as "10Mbit" or "1Gbit", not 10',
    'rate-in = "10"': 'rate-in must be a rate such as "10Mbit" or "1Gbit", not "10"',
    'rate-in = "10M"': 'rate-in must be a rate such as "10Mbit" or "1Gbit", not "10M" (did you mean "10Mbit"?)',
    'rate-out = "10 mbps"': (
        'rate-out must be a rate such as "10Mbit" or "1Gbit", not "10 mbps" (did you mean "10Mbit"?)'
    ),
    'rate-out = "1.5Gbit"': 'rate-out must be a rate such as "10Mbit" or "1Gbit", not "1.5Gbit"',
    'rate-out = "10MB/s"': 'rate-out must be a rate such as "10Mbit" or "1Gbit", not "10MB/s"',
    'rate-out = "63kbit"': 'rate-out must be "64kbit" to "100Gbit", not "63kbit"',
    'rate-out = "101Gbit"': 'rate-out must be "64kbit" to "100Gbit", not "101Gbit"',
    'rate = "1Mbit"': 'unknown key "rate" in [vm.web.nic.lan] (did you mean "rate-in"?)',
}


@pytest.mark.parametrize(("line", "expected"), NIC_MISTAKES.items())
def test_mistakes_of_a_nic(line: str, expected: str) -> None:
    (error,) = errors_of(f'[vm.web.nic.lan]\nbridge = "br0"\n{line}\n')
    assert error.removeprefix("u.toml:3:1: error: ") == expected


def test_rates_are_bits_per_second_in_powers_of_ten() -> None:
    nic = parse_unit("u.toml", EVERY_KEY).vms["web"].nic["lan"]
    assert (nic.rate_in, nic.rate_out) == (10_000_000, 512_000)


VM_MISTAKES = {
    "memory = 512": 'memory must be a size such as "512M" or "32G", not 512 (did you mean "512M"?)',
    'memory = "512"': 'memory must be a size such as "512M" or "32G", not "512" (did you mean "512M"?)',
    'memory = "512MB"': 'memory must be a size such as "512M" or "32G", not "512MB" (did you mean "512M"?)',
    'memory = "1.5g"': 'memory must be a size such as "512M" or "32G", not "1.5g" (did you mean "1536M"?)',
    'memory = "-1G"': 'memory must be a size such as "512M" or "32G", not "-1G"',
    'memory = "512K"': 'memory must be "1M" to "16T", not "512K"',
    'memory = "1025K"': 'memory must be a whole number of MiB, not "1025K"',
    'memory = "99T"': 'memory must be "1M" to "16T", not "99T"',
    "memory = true": 'memory must be a size such as "512M" or "32G", not true',
    'cpus = "2"': 'cpus must be a whole number, 1 to 288, not "2" (write 2 without quotes)',
    "cpus = 0": "cpus must be a whole number, 1 to 288, not 0",
    "cpus = 289": "cpus must be a whole number, 1 to 288, not 289",
    "cpus = 2.0": "cpus must be a whole number, 1 to 288, not 2.0",
    "cpus = true": "cpus must be a whole number, 1 to 288, not true",
    "cpus = 0x" + "f" * 5000: "cpus must be a whole number, 1 to 288, not a number far too large",
    'machine = "isapc"': 'machine must be "q35", "pc" or "microvm", not "isapc"',
    'firmware = "efi"': 'firmware must be "bios" or "uefi", not "efi" (did you mean "uefi"?)',
    "rng = 1": "rng must be true or false, not 1",
    'watchdog = "reboot"': 'watchdog must be "reset", "poweroff", "pause", "inject-nmi" or "none", not "reboot"',
    "secure-boot = true": 'secure-boot needs UEFI (add firmware = "uefi")',
    'firmware = "uefi"\nmachine = "pc"\nsecure-boot = true': 'secure-boot needs machine = "q35"',
    'machine = "microvm"': 'machine = "microvm" needs kernel: it boots from no disk (add kernel = "/path/of/vmlinuz")',
    'kernel = "/k"\nmachine = "microvm"\nfirmware = "uefi"': 'there is no UEFI for machine = "microvm" '
    '(take machine = "q35")',
    'kernel = "/k"\nmachine = "microvm"\nwatchdog = "reset"': 'machine = "microvm" has no watchdog '
    '(take machine = "q35")',
    'enabled = "true"': 'enabled must be true or false, not "true" (write true without quotes)',
    "enabled = 1": "enabled must be true or false, not 1",
    'stop-timeout = "90"': 'stop-timeout must be a duration such as "90s", "5m" or "72h", not "90" '
    '(did you mean "90s"?)',
    'stop-timeout = "25h"': 'stop-timeout must be at most "24h", not "25h"',
    'stop_timeout = "1s"': 'unknown key "stop_timeout" in [vm.web] (did you mean "stop-timeout"?)',
    "nat = true": 'unknown key "nat" in [vm.web]',
    "hotplug-slots = -1": "hotplug-slots must be a whole number, 0 to 64, not -1",
    "cpu-weight = 0": "cpu-weight must be a whole number, 1 to 10000, not 0",
    'cpu-weight = "idle"': 'cpu-weight must be a whole number, 1 to 10000, not "idle"',
    "io-weight = 10001": "io-weight must be a whole number, 1 to 10000, not 10001",
    "cpu-quota = 150": 'cpu-quota must be per cent of one CPU such as "150%", not 150 (did you mean "150%"?)',
    'cpu-quota = "150"': 'cpu-quota must be per cent of one CPU such as "150%", not "150" (did you mean "150%"?)',
    "cpu-quota = 1.5": 'cpu-quota must be per cent of one CPU such as "150%", not 1.5',
    "cpu-quota = true": 'cpu-quota must be per cent of one CPU such as "150%", not true',
    'cpu-quota = "0%"': 'cpu-quota must be "1%" to "100000%", not "0%"',
    'cpu-quota = "100001%"': 'cpu-quota must be "1%" to "100000%", not "100001%"',
    "tasks = 0": "tasks must be a whole number, 1 to 4194304, not 0",
    "tasks = 80": "tasks must be at least 81 for cpus = 1, not 80: "
    "QEMU has a thread for each CPU, up to 64 for disks and 16 others, and aborts without (tasks = 81)",
    "cpus = 4\ntasks = 83": "tasks must be at least 84 for cpus = 4, not 83: "
    "QEMU has a thread for each CPU, up to 64 for disks and 16 others, and aborts without (tasks = 84)",
    'memory-max = "1G"': 'unknown key "memory-max" in [vm.web] (did you mean "memory"?)',
    'after = "vm:db"': 'after must be an array of strings, not "vm:db" (write ["vm:db"])',
    "after = []\nnic = 3": "nic must be a table, not 3",
    'uuid = "web"': 'uuid must be a uuid such as "6b6c4b0e-1d2f-4c58-9d1b-2f6c5d0a7e11", not "web"',
    'initrd = "/initrd"': 'initrd needs kernel (add kernel = "/path/of/vmlinuz")',
    'append = "quiet"': 'append needs kernel (add kernel = "/path/of/vmlinuz")',
    'kernel = "vmlinuz"': 'kernel must be an absolute path such as "/srv/vm/web.qcow2", not "vmlinuz"',
    'kernel = "/boot/"': 'kernel must name a file, not the directory "/boot/"',
    'kernel = ""': "kernel must not be empty",
    'description = "a\\u0000b"': 'description must not contain a NUL byte: "a\\x00b"',
    'description = "a\\nb"': 'description must not contain a newline: "a\\nb"',
    "description = 1979-05-27": "description must be a string, not a date or time",
}


@pytest.mark.parametrize(("line", "message"), VM_MISTAKES.items(), ids=range(len(VM_MISTAKES)))
def test_a_wrong_key_of_a_guest(line: str, message: str) -> None:
    place = 2 + line.count("\n")
    assert errors_of(f"[vm.web]\n{line}\n") == [f"u.toml:{place}:1: error: {message}"]


def test_a_microvm_has_virtio_nics_only() -> None:
    unit = '[vm.web]\nkernel = "/k"\nmachine = "microvm"\n[vm.web.nic.lan]\nbridge = "b"\nmodel = "e1000"\n'
    assert errors_of(unit) == ['u.toml:6:1: error: machine = "microvm" has virtio NICs only, not "e1000"']


SERIAL_MISTAKES = {
    '[vm.web.serial.a]\nport = "COM2"': '3:1: error: port must be "virtio", "ttyS1", "ttyS2" or "ttyS3", not "COM2"',
    '[vm.web.serial.a]\nto = "tcp"': '3:1: error: to must be "socket" or "file", not "tcp"',
    '[vm.web.serial.a]\npath = "/x"': '3:1: error: unknown key "path" in [vm.web.serial.a]',
    '[vm.web.serial.a]\nport = "ttyS1"\n[vm.web.serial.b]\nport = "ttyS1"': '5:1: error: port "ttyS1" is taken by "a"',
    'machine = "microvm"\nkernel = "/k"\n[vm.web.serial.a]\nport = "ttyS1"': '5:1: error: machine = "microvm" has no '
    'serial port beside its console (take port = "virtio")',
    "[vm.web.serial.A]": "2:16: error: the name of a serial port must be 1 to 15 lower-case letters, digits and -, "
    'beginning with a letter or digit, not "A"',
    "serial = {"
    + ", ".join(f"p{n} = {{}}" for n in range(31))
    + "}": "2:1: error: a guest has at most 30 serial ports, not 31",
}


@pytest.mark.parametrize(("lines", "message"), SERIAL_MISTAKES.items(), ids=range(len(SERIAL_MISTAKES)))
def test_a_wrong_serial_port(lines: str, message: str) -> None:
    assert errors_of(f"[vm.web]\n{lines}\n") == [f"u.toml:{message}"]


BRIDGE_MISTAKES = {
    'mac = "01:00:5e:00:00:01"': 'mac must be a unicast MAC address, not "01:00:5e:00:00:01" '
    '(did you mean "02:00:5e:00:00:01"?)',
    'mac = "de-ad-be-ef-24-31"': 'mac must be a MAC address such as "52:54:00:12:34:56", not "de-ad-be-ef-24-31" '
    '(did you mean "de:ad:be:ef:24:31"?)',
    'mac = "00:00:00:00:00:00"': "mac must not be the MAC address of zeros",
    "mtu = 65536": "mtu must be a whole number, 68 to 65535, not 65536",
    "vlan = 20": "vlan must be a table, not 20",
    "port = []": 'unknown key "port" in [bridge.br0] (did you mean "ports"?)',
}


@pytest.mark.parametrize(("line", "message"), BRIDGE_MISTAKES.items(), ids=range(len(BRIDGE_MISTAKES)))
def test_a_wrong_key_of_a_bridge(line: str, message: str) -> None:
    assert errors_of(f"[bridge.br0]\n{line}\n") == [f"u.toml:2:1: error: {message}"]


ITEM_MISTAKES = {
    ("addresses", "192.168.0.1"): 'must be an address with its prefix length such as "192.168.0.1/24", not '
    '"192.168.0.1" (did you mean "192.168.0.1/24"?)',
    ("addresses", "10.0.0.0/8"): 'must be an address, not the whole network "10.0.0.0/8" (did you mean "10.0.0.1/8"?)',
    ("addresses", "10.0.0.255/24"): 'must be an address, not the broadcast address "10.0.0.255/24"',
    ("addresses", "fe80::1%eth0/64"): 'must be an address with its prefix length such as "192.168.0.1/24", not '
    '"fe80::1%eth0/64"',
    ("addresses", "224.0.0.1/24"): 'must be an address for a bridge, not "224.0.0.1/24"',
    ("ports", "n" * 128): "must be a link's name of up to 15 bytes, or another one of it of up to 127, "
    f'not "{"n" * 60}…"',
    ("ports", "eth%d"): 'must be a link name without "%", not "eth%d"',
    ("ports", "a b"): 'must be a link name without spaces, not "a b"',
    ("ports", ".."): 'must be a link name that the kernel takes, not ".."',
    ("ports", "all"): 'must be a link name that the kernel takes, not "all"',
    ("ports", "br0"): 'names the bridge "br0" itself',
}


@pytest.mark.parametrize(("item", "message"), ITEM_MISTAKES.items(), ids=range(len(ITEM_MISTAKES)))
def test_a_wrong_item_is_pointed_at(item: tuple[str, str], message: str) -> None:
    key, value = item
    text = f'[bridge.br0]\n{key} = [\n  "{value}",\n]\n'
    assert errors_of(text) == [f"u.toml:3:3: error: {key} {message}"]


def test_columns_count_characters() -> None:
    assert errors_of('[bridge.br0]\nports = ["äöü", "a/b"]\n') == [
        'u.toml:2:17: error: ports must be a link name without "/", not "a/b"'
    ]


def test_a_tables_own_header_is_its_place() -> None:
    disks = "".join(f'[vm.web.disk.d{n}]\npath = "/{n}.raw"\n' for n in range(25))
    assert errors_of(f"{disks}  [vm.web]\n") == ["u.toml:51:7: error: a guest has at most 24 disks and NICs, not 25"]


def test_items_named_twice() -> None:
    assert errors_of('[bridge.br0]\nports = ["eth1", "eth1"]\n') == ['u.toml:2:1: error: ports names "eth1" twice']


DEVICES = {
    '[vm.web.disk.Root]\npath = "/a.raw"': "1:14: error: the name of a disk must be 1 to 15 lower-case letters, digits "
    'and -, beginning with a letter or digit, not "Root"',
    '[vm.web.nic."l n"]\nbridge = "b"': "1:13: error: the name of a NIC must be 1 to 15 lower-case letters, digits "
    'and -, beginning with a letter or digit, not "l n"',
    '[vm.web.disk.a]\nsize = "1G"': '1:14: error: a disk needs path (only a drive with media = "cdrom" may be empty)',
    "[vm.web.nic.lan]": "1:13: error: a NIC needs bridge "
    '(or direct = "LINK", which puts it on a link of the host itself)',
    '[vm.web.disk.a]\npath = "/a.vmdk"': '2:1: error: path "/a.vmdk" does not tell the format '
    '(add format = "raw" or "qcow2")',
    '[vm.web.disk.a]\npath = "/a.raw"\nsize = "0G"': '3:1: error: size must be "1K" to "8192T", not "0G"',
    '[vm.web.nic.lan]\nbridge = "b"\nmodel = "virtio-net"': '3:1: error: model must be "virtio", "e1000", "e1000e" or '
    '"rtl8139", not "virtio-net" (did you mean "virtio"?)',
    '[vm.web.nic]\nbridge = "b"': '2:1: error: bridge must be a table, not "b"',
}


@pytest.mark.parametrize(("text", "message"), DEVICES.items(), ids=range(len(DEVICES)))
def test_wrong_disks_and_nics(text: str, message: str) -> None:
    assert errors_of(text) == [f"u.toml:{message}"]


def test_a_guest_has_as_many_devices_as_slots() -> None:
    nics = "".join(f'[vm.web.nic.n{n}]\nbridge = "b"\n' for n in range(25))
    assert errors_of(f"[vm.web]\n{nics}") == ["u.toml:1:5: error: a guest has at most 24 disks and NICs, not 25"]
    assert errors_of(nics.rsplit("[", 1)[0]) == []


TOP = {
    "nat = true": '1:1: error: unknown key "nat" (a unit file has [bridge.NAME], [vm.NAME] and [vlan.NAME])',
    "[vms.web]": '1:2: error: unknown table "vms" (did you mean "vm"?)',
    "vm = 3": "1:1: error: vm must be tables such as [vm.NAME], not 3",
    "[vm]\ncpus = 2": '2:1: error: vm must hold tables such as [vm.NAME], not the key "cpus" = 2 '
    "(it belongs into a table with a name)",
    "[[vm.web]]": '1:6: error: vm must hold tables such as [vm.NAME], not the key "web" = an array',
    'bridge."a\\nb".mtu = 1500': '1:8: error: the name of a bridge must not contain a newline: "a\\nb"',
}


@pytest.mark.parametrize(("text", "message"), TOP.items(), ids=range(len(TOP)))
def test_what_is_no_table_of_a_unit(text: str, message: str) -> None:
    assert errors_of(text) == [f"u.toml:{message}"]


SYNTAX: dict[bytes, str] = {
    b"[vm.web]\ncpus = \n": "2:8: error: not TOML: a value is missing or not written as TOML",
    b"cpus": '1:5: error: not TOML: expected "=" after the key',
    b"[vm.web": '1:8: error: not TOML: expected "]" at the end of the table\'s name',
    b'[vm.web]\ncpu = "max\n': "2:11: error: not TOML: the line ends before its quoted text does",
    b"[vm.web]\ncpus = 2 3\n": "2:10: error: not TOML: expected the end of the line after the value",
    b"[vm.web]\n[vm.web]\n": "2:8: error: the table [vm.web] is there a second time (put all its keys into one table)",
    b"a = 1\na = 2\nb = 3\n": "2:6: error: not TOML: a key is set a second time",
    b"a = [1\n": '1:7: error: not TOML: an array is not closed: expected "]"',
    b"a\n\0b": "2:1: error: a NUL byte: this is not a text file",
    b"\x7fELF\x02\x01\x01\0\0": "1:8: error: a NUL byte: this is not a text file",
    b"a = 1\n# \xff\xfe": "2:3: error: bytes that are not UTF-8 (save it as UTF-8)",
    b"\xef\xbb\xbf[vm.web]": "1:1: error: the file begins with a byte order mark (save it as UTF-8 without BOM)",
    b"x = 1" + b"0" * 5000: "1:5: error: a number with thousands of digits",
    b"# deep\nx = " + b"[" * 5000: "2:5: error: arrays or tables are nested too deeply",
    b"# long\nx = {" + b"a." * 500_000 + b"b = 1}": "2:5: error: a key of more than 64 parts",
    b"#" * (12 << 20): "1:1: error: the file is larger than 1 MiB",
}


@pytest.mark.parametrize(("data", "message"), SYNTAX.items(), ids=range(len(SYNTAX)))
def test_what_is_no_toml(data: bytes, message: str) -> None:
    assert errors_of(data) == [f"u.toml:{message}"]


def test_a_file_name_cannot_break_a_line() -> None:
    unit = parse_unit("a\nb\x1b.toml", b"x = 1")
    assert str(unit.errors[0]).startswith("a\\nb\\x1b.toml:1:1: error: ")


def test_thousands_of_mistakes_are_counted() -> None:
    unit = parse_unit("u.toml", b"".join(b"k%d = 1\n" % n for n in range(5000)))
    assert len(unit.errors) == MAX_ERRORS + 1
    assert unit.errors[-1].problem == "and 4800 more mistakes"


def test_a_table_with_mistakes_hides_no_other_table() -> None:
    unit = parse_unit("u.toml", b'[vm.bad]\ncpus = 0\n[vm.bad.nic.lan]\nbridge = "br9"\n[vm.good]\n[bridge.br0]\n')
    assert (list(unit.vms), list(unit.bridges), len(unit.errors)) == (["good"], ["br0"], 1)
    assert [reference.target for reference in unit.references] == ["br9"]


def test_the_headers_of_a_broken_file_still_claim_their_names() -> None:
    unit = parse_unit("u.toml", b"[bridge.br0]\nmtu = = 3\n[vm.web.nic.lan]\n[vm.web]\n# [vm.no]\n")
    assert [claim.resource for claim in unit.claims] == ["bridge/br0", "vm/web"]


def test_the_schema_names_every_key() -> None:
    schema = UnitFile.model_json_schema()
    assert {"stop-timeout", "memory", "nic"} <= schema["$defs"]["VmTable"]["properties"].keys()
    assert schema["$defs"]["DiskTable"]["additionalProperties"] is False


def test_a_name_with_a_newline_stays_on_the_line_of_its_error() -> None:
    errors = [str(error) for error in parse_unit("u.toml", b'[vm.w.disk]\n"a\\nb" = false\n').errors]
    assert errors[-1] == "u.toml:2:1: error: a\\nb must be a table, not false"
    assert not any("\n" in error for error in errors)
