"""Which DHCP client serves a link, by its command line, which dhcpcd(8) writes anew as it goes on."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import pairwise

CLIENTS = frozenset({"dhclient", "dhcpcd", "udhcpc", "udhcpc6", "dhcp6c", "connmand"})
ASSUMED = "eth0"
"""What udhcpc serves where it is told nothing."""
_WORDS = (
    *("-p", "-D", "-s", "-g", "-e", "-pf", "-lf", "-df", "-cf", "-sf", "-C", "-H", "-F", "-V", "--timeout"),
    *("--dad-wait-time", "--prefix-len-hint", "--decline-wait-time", "--address-prefix-len", "--request-options"),
)
_VALUED = {"dhclient": frozenset(_WORDS)}
"""Options that a value follows, which is no link then: dhclient(8)."""
_INTERFACE = re.compile(r"-[fbnqSRoBCva]*i(.*)$")
"""Letters that take no value may stand before it (getopt(3))."""
_STARTERS = re.compile(r"(busybox.*|sh|dash|bash)$")
_DENIED = re.compile(r"^[ \t]*(deny|allow)interfaces[ \t]+([^#\n]+)", re.MULTILINE)


def client_serving(argv: Sequence[str], link: str, dhcpcd_conf: str = "") -> str:
    """The program's name if it is a DHCP client that serves this link, else empty; `dhcpcd_conf`: dhcpcd.conf(5)."""
    if argv and argv[0].startswith("dhcpcd: "):
        return "dhcpcd" if _dhcpcd_serves(argv[0].removeprefix("dhcpcd: ").split(), link, dhcpcd_conf) else ""
    words = argv[1:] if argv and _STARTERS.match(posixpath.basename(argv[0])) else argv
    program = posixpath.basename(words[0]) if words else ""
    if program not in CLIENTS:
        return ""
    told = _links_told(program, words[1:])
    return program if _is_told(link, told) or (not told and _serves_unasked(program, link, dhcpcd_conf)) else ""


def _dhcpcd_serves(title: Sequence[str], link: str, conf: str) -> bool:
    """`up0 [ip4] [ip6]` serves a link, `[manager] [ip4]` all it may; others of its processes help these two."""
    if title[:1] in (["[manager]"], ["[master]"]):
        return is_dhcpcds(link, conf)
    return _is_told(link, title[:1])


def is_dhcpcds(link: str, conf: str) -> bool:
    """Whether dhcpcd.conf(5) leaves a link to dhcpcd: `denyinterfaces` and `allowinterfaces`, each with patterns."""
    said: dict[str, list[str]] = {"deny": [], "allow": []}
    for kind, patterns in _DENIED.findall(conf):
        said[kind] += re.split(r"[\s,]+", patterns.strip())
    matches = {kind: any(fnmatchcase(link, one) for one in patterns) for kind, patterns in said.items()}
    return not matches["deny"] and (matches["allow"] or not said["allow"])


def _links_told(program: str, words: Sequence[str]) -> list[str]:
    """The links that a command line names: for udhcpc by an option, for all others what is no option and no path."""
    if program.startswith("udhcpc"):
        return _after_interface(words)
    found, valued = [], False
    for word in words:
        if not valued and not word.startswith("-") and "/" not in word:
            found.append(word)
        valued = not valued and word in _VALUED.get(program, ())
    return found


def _after_interface(words: Sequence[str]) -> list[str]:
    """The values of `-i`, also behind other letters (`-fbi up0`), and of `--interface`, which may be cut short."""
    found = []
    for word, following in pairwise((*words, "")):
        name, _, value = word.partition("=")
        if name.startswith("--i") and "--interface".startswith(name):
            found.append(value or following)
        elif short := _INTERFACE.match(word):
            found.append(short[1] or following)
    return found


def _is_told(link: str, told: Sequence[str]) -> bool:
    return any(one == link or one.startswith(f"{link}.") for one in told)


def _serves_unasked(program: str, link: str, conf: str) -> bool:
    """Whether a client that was told no link serves this one: most take all then."""
    if program.startswith("udhcpc"):
        return link == ASSUMED
    return program in {"dhclient", "connmand"} or (program == "dhcpcd" and is_dhcpcds(link, conf))
