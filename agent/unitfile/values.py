"""What the values of unit files may be, each check in plain words.

Every function takes what the TOML holds, returns the canonical value, and raises BadValueError with a predicate
("must be …") that reads on after the key's name.
"""

from __future__ import annotations

import ipaddress
import re

from agent.core.marks import MAX_LINK_NAME
from agent.core.rates import UNITS_BPS
from agent.core.text import printable

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MAX_SIZE_BYTES = 1 << 53
"""8 PiB: more than anyone attaches, and far below where the 63-bit offsets of QEMU end."""
MIN_MEMORY_BYTES = UNITS["M"]
MAX_MEMORY_BYTES = 16 * UNITS["T"]
MIN_RATE_BPS = 64_000
MAX_RATE_BPS = 100 * UNITS_BPS["Gbit"]
MAX_BANDWIDTH_BYTES = UNITS["T"]
"""More than any disk does in a second, and below where QEMU's throttle ends (10^15, util/throttle.c)."""
MAX_STOP_TIMEOUT_S = 24 * 3600
MAX_FILE_BYTES = 1 << 20
"""A unit file that is larger is refused unread."""
MAX_PATH_BYTES = 4095
"""PATH_MAX less the terminating NUL (linux/limits.h)."""
MAX_QUOTA_PERCENT = 100_000
"""A thousand CPUs; the least is 1 %, which is the kernel's least of 1 ms in 100 ms (sched-bwc.rst)."""
MAX_APPEND_BYTES = 2047
"""COMMAND_LINE_SIZE less the terminating NUL (Linux, arch/x86/include/asm/setup.h)."""

MAX_ALTNAME = 127
"""Bytes of another name of a link: ALTIFNAMSIZ less the terminating NUL (linux/if.h)."""

_SIZE = re.compile(r"([0-9]{1,16})([KMGT])", re.ASCII)
_LOOSE_SIZE = re.compile(r"\s*([0-9]{1,12})(?:\.([0-9]))?\s*([kmgt]?)(?:i?b)?\s*", re.ASCII | re.IGNORECASE)
_RATE = re.compile(r"([0-9]{1,12})(kbit|Mbit|Gbit)", re.ASCII)
_LOOSE_RATE = re.compile(r"\s*([0-9]{1,9})\s*([kmg]?)(b|bits?|bps|bits?/s|bits?ps)?\s*", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(r"([0-9]{1,9})([smh])", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_VM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", re.ASCII)
_DEVICE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,14}", re.ASCII)
_PLACE = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_QUOTA = re.compile(r"([0-9]{1,6})%", re.ASCII)
_DURATION_S = {"s": 1, "m": 60, "h": 3600}


class BadValueError(ValueError):
    """A value that a unit may not hold. `problem` reads on after the key's name; `hint` says what to write instead."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


def quoted(text: str) -> str:
    """Text in quotes, escaped, and cut where it is long."""
    shown = printable(text[:61])
    return f'"{shown[:60]}…"' if len(shown) > 60 else f'"{shown}"'


def shown(value: object) -> str:
    """A TOML value as a message names it; never long, and never a number with thousands of digits."""
    match value:
        case str():
            return quoted(value)
        case bool():
            return "true" if value else "false"
        case int():
            return str(value) if abs(value) < 10**18 else "a number far too large"
        case float():
            return str(value)
        case list():
            return "an array"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def parse_text(value: object) -> str:
    """A string without control characters."""
    if not isinstance(value, str):
        raise BadValueError(f"must be a string, not {shown(value)}", "write it in quotes" if _is_number(value) else "")
    if found := _CONTROL.search(value):
        name = {"\0": "a NUL byte", "\n": "a newline", "\r": "a carriage return", "\t": "a tab"}.get(found.group())
        raise BadValueError(f"must not contain {name or 'a control character'}: {quoted(value)}")
    return value


def parse_nonempty(value: object) -> str:
    """A string that is not empty."""
    text = parse_text(value)
    if not text.strip():
        raise BadValueError("must not be empty")
    return text


def parse_append(value: object) -> str:
    """A kernel command line."""
    return parse_short(value, MAX_APPEND_BYTES)


def parse_short(value: object, max_bytes: int) -> str:
    """A string without control characters, of so many bytes at most."""
    text = parse_text(value)
    if len(text.encode()) > max_bytes:
        raise BadValueError(f"must be at most {max_bytes} bytes, not {len(text.encode())}")
    return text


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def parse_size(value: object) -> int:
    """A size such as "512M", in bytes; K, M, G and T are powers of two."""
    text = value if isinstance(value, str) else ""
    if found := _SIZE.fullmatch(text):
        size = int(found[1]) * UNITS[found[2]]
        if 0 < size <= MAX_SIZE_BYTES:
            return size
        raise BadValueError(f'must be "1K" to "{MAX_SIZE_BYTES // UNITS["T"]}T", not {shown(value)}')
    raise BadValueError(f'must be a size such as "512M" or "32G", not {shown(value)}', _size_hint(value))


def _size_hint(value: object) -> str:
    """What was probably meant: 512 and "512MB" are "512M", "1.5G" is "1536M"."""
    if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, int) and value > 10**12):
        return ""
    found = _LOOSE_SIZE.fullmatch(str(value))
    if not found:
        return ""
    number, tenths, unit = int(found[1]), found[2], found[3].upper()
    if tenths is None:
        return f'did you mean "{number}{unit or "M"}"?'
    smaller = {"M": "K", "G": "M", "T": "G"}.get(unit)
    return f'did you mean "{(number * 10 + int(tenths)) * 1024 // 10}{smaller}"?' if smaller else ""


def parse_memory(value: object) -> int:
    """A guest's memory, in MiB."""
    size = parse_size(value)
    if not MIN_MEMORY_BYTES <= size <= MAX_MEMORY_BYTES:
        raise BadValueError(f'must be "1M" to "16T", not {shown(value)}')
    if size % UNITS["M"]:
        raise BadValueError(f"must be a whole number of MiB, not {shown(value)}")
    return size // UNITS["M"]


def parse_bandwidth(value: object) -> int:
    """Bytes in a second."""
    size = parse_size(value)
    if size > MAX_BANDWIDTH_BYTES:
        raise BadValueError(f'must be "1K" to "1T" in a second, not {shown(value)}')
    return size


def parse_duration(value: object) -> float:
    """A duration such as "90s", in seconds; up to a day."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        number = value if isinstance(value, int) and not isinstance(value, bool) else None
        digits = value if isinstance(value, str) and re.fullmatch("[0-9]{1,6}", value, re.ASCII) else None
        hint = f'did you mean "{digits or number}s"?' if digits or (number is not None and 0 <= number < 10**6) else ""
        raise BadValueError(f'must be a duration such as "90s", "5m" or "72h", not {shown(value)}', hint)
    seconds = int(found[1]) * _DURATION_S[found[2]]
    if seconds > MAX_STOP_TIMEOUT_S:
        raise BadValueError(f'must be at most "24h", not {shown(value)}')
    return float(seconds)


def parse_quota(value: object) -> int:
    """CPU time in per cent of one CPU, such as "150%"."""
    found = _QUOTA.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        number = value if _is_number(value) else None
        digits = value if isinstance(value, str) and re.fullmatch("[0-9]{1,6}", value, re.ASCII) else None
        whole = digits or (number if isinstance(number, int) and 0 < number <= MAX_QUOTA_PERCENT else "")
        hint = f'did you mean "{whole}%"?' if whole else ""
        raise BadValueError(f'must be per cent of one CPU such as "150%", not {shown(value)}', hint)
    if not 1 <= int(found[1]) <= MAX_QUOTA_PERCENT:
        raise BadValueError(f'must be "1%" to "{MAX_QUOTA_PERCENT}%", not {shown(value)}')
    return int(found[1])


def parse_rate(value: object) -> int:
    """A rate such as "10Mbit", in bits per second; kbit, Mbit and Gbit are powers of ten."""
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise BadValueError(f'must be a rate such as "10Mbit" or "1Gbit", not {shown(value)}', _rate_hint(value))
    rate = int(found[1]) * UNITS_BPS[found[2]]
    if not MIN_RATE_BPS <= rate <= MAX_RATE_BPS:
        raise BadValueError(f'must be "64kbit" to "100Gbit", not {shown(value)}')
    return rate


def _rate_hint(value: object) -> str:
    """What was probably meant: "10M", "10 mbit" and "10Mbps" are "10Mbit". A bare number may be anything."""
    found = _LOOSE_RATE.fullmatch(value) if isinstance(value, str) else None
    unit = next((unit for unit in UNITS_BPS if found and found[2] and unit[0].lower() == found[2].lower()), None)
    return f'did you mean "{found[1]}{unit}"?' if found and unit else ""


def parse_path(value: object) -> str:
    """An absolute path of a file, as written."""
    text = parse_nonempty(value)
    if not text.startswith("/"):
        raise BadValueError(f'must be an absolute path such as "/srv/vm/web.qcow2", not {shown(value)}')
    if text.endswith(("/", "/.", "/..")):
        raise BadValueError(f"must name a file, not the directory {shown(value)}")
    if len(text.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > 255 for part in text.split("/")):
        raise BadValueError(f"must be at most {MAX_PATH_BYTES} bytes, each name at most 255, not {shown(value)}")
    return text


def normalised_path(path: str) -> str:
    """An absolute path without empty parts, `.` and `..`: what two units must not both write to."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in {"", "."}:
            parts.append(part)
    return "/" + "/".join(parts)


def parse_mac(value: object) -> str:
    """A unicast MAC address in lower case (IEEE 802: bit 0 of octet 0 is clear)."""
    if not isinstance(value, str) or not _MAC.fullmatch(value.lower()):
        hint = ""
        if isinstance(value, str) and _MAC.fullmatch(value.lower().replace("-", ":")):
            hint = f'did you mean "{value.lower().replace("-", ":")}"?'
        raise BadValueError(f'must be a MAC address such as "52:54:00:12:34:56", not {shown(value)}', hint)
    if int(value[:2], 16) & 1:
        fixed = f"{int(value[:2], 16) & 0xFE | 0x02:02x}{value[2:].lower()}"
        raise BadValueError(f"must be a unicast MAC address, not {shown(value)}", f'did you mean "{fixed}"?')
    if not int(value.replace(":", ""), 16):
        raise BadValueError("must not be the MAC address of zeros")
    return value.lower()


def parse_uuid(value: object) -> str:
    """A uuid in lower case, with hyphens."""
    if not isinstance(value, str) or not _UUID.fullmatch(value.lower()):
        raise BadValueError(f'must be a uuid such as "6b6c4b0e-1d2f-4c58-9d1b-2f6c5d0a7e11", not {shown(value)}')
    if not int(value.replace("-", ""), 16):
        raise BadValueError("must not be the uuid of zeros")
    return value.lower()


def parse_link_name(value: object) -> str:
    """What the kernel takes as a link's name (net/core/dev.c, dev_valid_name and __dev_alloc_name: `%` is a template).

    `all` and `default` are refused by the kernel as well: their names in /proc/sys/net are taken (net/ipv4/devinet.c).
    """
    text = parse_text(value)
    if not text or len(text.encode()) > MAX_LINK_NAME:
        raise BadValueError(f"must be a link name of 1 to {MAX_LINK_NAME} bytes, not {shown(value)}")
    if text in {".", "..", "all", "default"}:
        raise BadValueError(f"must be a link name that the kernel takes, not {shown(value)}")
    bad = next((c for c in text if c in "/:%" or c.isspace()), None)
    if bad is not None:
        name = "spaces" if bad.isspace() else f'"{bad}"'
        raise BadValueError(f"must be a link name without {name}, not {shown(value)}")
    return text


def parse_port(value: object) -> str:
    """A link that exists: its name or another of its names, `mac:` with its MAC, `pci:` with its place on the bus."""
    text = parse_text(value)
    kind, colon, rest = text.partition(":")
    if colon and kind.lower() == "mac":
        return f"mac:{parse_mac(rest)}"
    if colon and kind.lower() == "pci":
        place = rest.lower()
        if not _PLACE.fullmatch(place):
            short = _PLACE.fullmatch(f"0000:{place}")
            hint = f'did you mean "pci:0000:{place}"?' if short else ""
            raise BadValueError(f'must name a place such as "pci:0000:01:00.0", not {shown(value)}', hint)
        return f"pci:{place}"
    if colon:
        hint = f'did you mean "mac:{text.lower()}"?' if _MAC.fullmatch(text.lower()) else ""
        if _PLACE.fullmatch(text.lower()):
            hint = f'did you mean "pci:{text.lower()}"?'
        raise BadValueError(f'must be a link\'s name, "mac:…" or "pci:…", not {shown(value)}', hint)
    if len(text.encode()) > MAX_ALTNAME:
        problem = f"must be a link's name of up to {MAX_LINK_NAME} bytes, or another one of it of up to {MAX_ALTNAME}"
        raise BadValueError(f"{problem}, not {shown(value)}")
    if len(text.encode()) > MAX_LINK_NAME and not any(c in "/%" or c.isspace() for c in text):
        return text
    return parse_link_name(text)


def parse_vm_name(value: object) -> str:
    """A guest's name."""
    if not isinstance(value, str) or not _VM_NAME.fullmatch(value):
        raise BadValueError(
            f"must be 1 to 63 letters, digits, - and _, beginning with a letter or digit, not {shown(value)}"
        )
    return value


def parse_device_name(value: object) -> str:
    """The name of a NIC or disk."""
    if not isinstance(value, str) or not _DEVICE_NAME.fullmatch(value):
        raise BadValueError(
            f"must be 1 to 15 lower-case letters, digits and -, beginning with a letter or digit, not {shown(value)}"
        )
    return value


def parse_address(value: object) -> str:
    """An interface address with its prefix length, such as "192.168.0.1/24", in canonical form."""
    wrong = f'must be an address with its prefix length such as "192.168.0.1/24", not {shown(value)}'
    if not isinstance(value, str) or "%" in value:
        raise BadValueError(wrong)
    host, slash, prefix = value.partition("/")
    try:
        if not slash:
            address = ipaddress.ip_address(host)
            raise BadValueError(wrong, f'did you mean "{address}/{24 if address.version == 4 else 64}"?')
        if not re.fullmatch("[0-9]{1,3}", prefix, re.ASCII):
            raise BadValueError(wrong)
        parsed = ipaddress.ip_interface(value)
    except BadValueError:
        raise
    except ValueError:
        raise BadValueError(wrong) from None
    if parsed.ip.is_multicast or parsed.ip.is_unspecified or parsed.ip.is_loopback:
        raise BadValueError(f"must be an address for a bridge, not {shown(value)}")
    if parsed.version == 4 and parsed.network.prefixlen < 31:
        if parsed.ip == parsed.network.network_address:
            first = f"{parsed.network.network_address + 1}/{parsed.network.prefixlen}"
            raise BadValueError(f"must be an address, not the whole network {shown(value)}", f'did you mean "{first}"?')
        if parsed.ip == parsed.network.broadcast_address:
            raise BadValueError(f"must be an address, not the broadcast address {shown(value)}")
    return parsed.with_prefixlen
