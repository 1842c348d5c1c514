"""The values of keys that say what waits for what: `after`, `ready`, and a NIC's `address`, which `ready` is asked at.

As in `agent.unitfile.values`: a function takes what the TOML holds, returns the canonical value, or raises
BadValueError.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping

from agent.core.references import GUEST, PATH, RUNNING, TCP, endpoint
from agent.unitfile.machines import Mistake
from agent.unitfile.values import BadValueError, parse_path, parse_vm_name, shown

MAX_PORT = 65535

_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_AFTER = 'must be "vm:NAME", "path:/PATH" or "tcp:ADDRESS:PORT"'
_READY = 'must be "running", "tcp:PORT" or "tcp:ADDRESS:PORT"'


def parse_after(value: object) -> str:
    """What a guest starts after, as a reference (`agent.core.references`)."""
    text = value if isinstance(value, str) else ""
    if text.startswith(GUEST) and _is(parse_vm_name, text.removeprefix(GUEST)):
        return text
    if text.startswith(PATH):
        try:
            return PATH + parse_path(text.removeprefix(PATH).rstrip("/") or text.removeprefix(PATH))
        except BadValueError as bad:
            raise BadValueError(f"names a path that {bad.problem}", bad.hint) from None
    if text.startswith(TCP):
        return _parse_tcp(text, _AFTER)
    raise BadValueError(f"{_AFTER}, not {shown(value)}", _after_hint(text))


def _after_hint(text: str) -> str:
    if text.startswith("/"):
        return f'did you mean "path:{text}"?'
    return f'did you mean "vm:{text}"?' if _is(parse_vm_name, text) else ""


def _is(check: object, text: str) -> bool:
    try:
        return callable(check) and bool(check(text))
    except BadValueError:
        return False


def _parse_tcp(text: str, wanted: str) -> str:
    """The canonical reference to a TCP port; names are refused, because what looks them up may hang or change."""
    host, colon, port = text.removeprefix(TCP).rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not _PORT.fullmatch(port) or not 0 < int(port) <= MAX_PORT:
        raise BadValueError(f"{wanted} with a port of 1 to {MAX_PORT}, not {shown(text)}")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        hint = "write the address itself: names are not looked up" if re.search("[A-Za-z]", host) else ""
        raise BadValueError(f"{wanted}, not {shown(text)}", hint) from None
    if "%" in host or address.is_unspecified or address.is_multicast:
        raise BadValueError(f"{wanted} with an address that can be connected to, not {shown(text)}")
    if (address.version == 6) is not bracketed:
        raise BadValueError(f"{wanted}, not {shown(text)}", f'did you mean "{endpoint(str(address), int(port))}"?')
    return endpoint(str(address), int(port))


def parse_ready(value: object) -> str:
    """When a guest is ready: "running", a reference to a TCP port, or "tcp:PORT" of the guest's own address."""
    text = value if isinstance(value, str) else ""
    if text == RUNNING:
        return text
    port = text.removeprefix(TCP)
    if text.startswith(TCP) and _PORT.fullmatch(port):
        if not 0 < int(port) <= MAX_PORT:
            raise BadValueError(f"{_READY} with a port of 1 to {MAX_PORT}, not {shown(value)}")
        return f"{TCP}{int(port)}"
    if text.startswith(TCP):
        return _parse_tcp(text, _READY)
    hint = f'did you mean "{TCP}{value}"?' if _PORT.fullmatch(str(value)) and not isinstance(value, bool) else ""
    raise BadValueError(f"{_READY}, not {shown(value)}", hint)


def parse_guest_address(value: object) -> str:
    """An address of a guest, without prefix, in canonical form."""
    wrong = f'must be an address such as "192.168.0.100", not {shown(value)}'
    text = value if isinstance(value, str) else ""
    host, slash, _ = text.partition("/")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise BadValueError(wrong) from None
    if slash:
        raise BadValueError(
            f"{wrong[: wrong.index(', not')]} without prefix, not {shown(value)}", f'did you mean "{address}"?'
        )
    if "%" in text or address.is_unspecified or address.is_multicast or address.is_loopback:
        raise BadValueError(f"must be an address for a guest, not {shown(value)}")
    return str(address)


def listed_addresses(value: object) -> object:
    """One address, or an array of them, as a tuple of what is still to be checked."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise BadValueError(f"must be an address or an array of them, not {shown(value)}")
    return tuple(value)


def ready_of(ready: str, nics: Iterator[tuple[str, ...]]) -> str:
    """A guest's `ready` as its spec has it: where only a port is named, at the first address of its NICs."""
    port = ready.removeprefix(TCP)
    if not _PORT.fullmatch(port):
        return ready
    return next((endpoint(addresses[0], int(port)) for addresses in nics if addresses), RUNNING)


def order_mistakes(table: Mapping[str, object]) -> Iterator[Mistake]:
    """A readiness that is asked at the guest's own address needs one."""
    ready, nics = table.get("ready"), table.get("nic")
    if not isinstance(ready, str) or ready == RUNNING or not _is(parse_ready, ready) or ":" in ready.removeprefix(TCP):
        return
    if not any(
        isinstance(nic, dict) and nic.get("address") for nic in (nics.values() if isinstance(nics, dict) else ())
    ):
        hint = f'add address = "192.168.0.100" to one, or write ready = "tcp:ADDRESS:{ready.removeprefix(TCP)}"'
        yield ("ready",), f"ready = {shown(ready)} needs a NIC with an address", hint
