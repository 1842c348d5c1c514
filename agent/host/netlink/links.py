"""What the agent does to links.

Every change looks at its link again immediately before, and reads the kernel's events about it immediately afterwards:
when a method returns, `snapshot` shows what it did, and the next plan does not ask for it twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace

from agent.core import marks
from agent.core.actions import LinkChange
from agent.core.desired import BridgeSpec
from agent.core.errors import ActionError, OutcomeUnknownError, PermanentError, TransientError
from agent.core.netlink import NLM_F_ACK, NLM_F_DUMP, Message
from agent.core.observed import AddressState, LinkState
from agent.core.vlans import AWARE, PortVlans
from agent.host.netlink import messages as said
from agent.host.netlink import requests as asked
from agent.host.netlink.view import LinkView
from agent.host.netlink.vlans import set_vlans
from agent.host.netlink.wire import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Ignoring,
    KernelRefusedError,
    NoAnswerError,
    RequestSocket,
    Writable,
)

_PASSING = {
    errno.EBUSY: "Busy",
    errno.ENODEV: "LinkGone",
    errno.EEXIST: "Conflict",
    errno.ENETDOWN: "LinkDown",
} | dict.fromkeys((errno.EAGAIN, errno.EINTR, errno.ENOMEM, errno.ENOBUFS), "ActionFailed")
_NO_IPV6 = {errno.EACCES, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}
"""The kernel's answers to an IPv6 address where `disable_ipv6` is 1, and where it has no IPv6."""

_NO_ROUTES = {errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}


class Links(LinkView):
    """The links of the network namespace that it is entered in, and every change of them."""

    async def create_bridge(self, spec: BridgeSpec, vlans: PortVlans | None = None) -> None:
        """Make a bridge, mark it, set it up, give it its addresses; with `vlans` it heeds them, and carries these.

        A kernel whose bridges know none makes it without, and says so of the link (`LinkState.bridging`).

        One that was interrupted is known by its group (`marks.is_own_bridge`). A link that has the name already:
        TransientError with reason Conflict.
        """
        with self._doing(f"create bridge {spec.name}"):
            flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
            try:
                await self._elsewhere(said.RTM_NEWLINK, asked.new_bridge(spec, aware=vlans is not None), flags)
            except KernelRefusedError as e:
                if vlans is None or e.number != errno.EOPNOTSUPP:
                    raise
                await self._elsewhere(said.RTM_NEWLINK, asked.new_bridge(spec), flags)
            self.catch_up()
            made = self.snapshot.get(spec.name)
            if made is None:
                raise OutcomeUnknownError(f"create bridge {spec.name}: it is gone again", reason="LinkGone")
            if made.group_learning:
                self._ask(said.RTM_NEWLINK, asked.group_learning(made.ifindex, on=False))
            if vlans is not None and made.bridging == AWARE:
                self._lead_vlans(made.ifindex, vlans, is_bridge=True)
            mark = LinkChange(alias=marks.bridge_mark(spec.name), mtu=spec.mtu, up=True)
            self._ask(said.RTM_NEWLINK, asked.link_setting(made.ifindex, mark))
            self._add_addresses(made.ifindex, [said.normal_address(address) for address in spec.addresses])
            self._show_addresses(made.ifindex)
            self._read_back(made.ifindex)
            self._read_vlans(made.ifindex)

    async def create_macvtap(self, name: str, lower_ifindex: int, mac: str, queues: int) -> LinkState:
        """Make a macvtap on a link; it is down, and known as ours by its group until it is marked.

        A link that has the name, or a lower one that is gone: TransientError. PermanentError `Unsupported` where the
        kernel has no macvtap, `Conflict` where the lower link is a bridge's port or its driver takes none.
        """
        what = f"create macvtap {name}"
        with self._doing(what):
            message = asked.new_macvtap(name, lower_ifindex, mac, queues)
            try:
                await self._elsewhere(said.RTM_NEWLINK, message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            except KernelRefusedError as e:
                if e.number == errno.EOPNOTSUPP:
                    problem = f"{what}: the kernel has no macvtap; `modprobe macvtap` brings it"
                    raise PermanentError(problem, reason="Unsupported") from e
                raise
            self.catch_up()
            made = self.snapshot.get(name)
            if made is None:
                raise OutcomeUnknownError(f"{what}: it is gone again", reason="LinkGone")
            return made

    async def change(self, link: str, ifindex: int, expect_alias: str, change: LinkChange) -> None:
        """Set fields of a link, all in one request but that it is isolated, if `ifindex` still has this name and alias.

        Otherwise TransientError with reason LinkChanged, and nothing is set. After another error some fields may be.
        Kernels before 6.2 rename a link only while it is down: then it goes down for that moment.
        """
        with self._doing(f"change {link}", ifindex):
            self._look_again(link, ifindex, expect_alias)
            try:
                self._set(ifindex, change)
            except KernelRefusedError as e:
                self._require_master(change.master)
                if e.number != errno.EBUSY or change.name is None:
                    raise
                was_up = self._get(ifindex).up
                self._ask(said.RTM_NEWLINK, asked.link_setting(ifindex, LinkChange(up=False)))
                again = change if change.up is not None else replace(change, up=was_up)
                self._set(ifindex, again)

    def _set(self, ifindex: int, change: LinkChange) -> None:
        """Set fields; a port that is to be isolated is so before it goes up."""
        if change.group_learning is not None:
            self._ask(said.RTM_NEWLINK, asked.group_learning(ifindex, on=change.group_learning))
        if change.vlans is not None:
            self._require_heeding(change.master)
            self._ask(
                said.RTM_NEWLINK, asked.link_setting(ifindex, replace(change, isolated=None, vlans=None, up=None))
            )
            self._lead_vlans(ifindex, change.vlans)
            change = LinkChange(up=change.up, isolated=change.isolated)
        if change.isolated is None:
            self._ask(said.RTM_NEWLINK, asked.link_setting(ifindex, change))
            return
        rest = replace(change, isolated=None, up=None)
        if rest != LinkChange():
            self._ask(said.RTM_NEWLINK, asked.link_setting(ifindex, rest))
        setting = asked.isolation(ifindex, isolated=change.isolated, up=change.up)
        self._ask(said.RTM_NEWLINK, setting)

    def _lead_vlans(self, ifindex: int, wanted: PortVlans, *, is_bridge: bool = False) -> None:
        """Have a port, or a bridge itself, carry this, and nothing else."""
        seen = self._look_at_vlans(ifindex) or PortVlans()
        set_vlans(self._ask, ifindex, seen, wanted, is_bridge=is_bridge)

    def _require_heeding(self, bridge: int | None) -> None:
        """A port with VLANs of its own comes into a bridge that heeds them, and where it is given no others."""
        link = self._get(bridge) if bridge else None
        if link is None or link.bridging != AWARE:
            raise TransientError("its bridge does not heed VLANs as it should", reason="LinkChanged")

    async def enslave(
        self, port_ifindex: int, bridge_ifindex: int, mtu: int | None, vlans: PortVlans | None = None
    ) -> None:
        """Put a host link into a bridge and set it up, if nothing is reached through the link itself.

        Addresses or unicast routes on it (but link-local ones): PermanentError with reason PortAddressed. In another
        bridge already: TransientError with reason Conflict. In this bridge already: only MTU and up are set.
        """
        with self._doing(f"enslave link {port_ifindex}", port_ifindex):
            port = self._get(port_ifindex)
            if port.master not in {None, bridge_ifindex}:
                raise TransientError(f"{port.name} is in another bridge or bond", reason="Conflict")
            if port.master is None and (why := self._reached_through(port_ifindex)):
                raise PermanentError(f"{port.name} {why}: enslaving it would cut them off", reason="PortAddressed")
            change = LinkChange(master=bridge_ifindex, mtu=mtu, up=True, vlans=vlans)
            try:
                self._set(port_ifindex, change)
            except KernelRefusedError:
                self._require_master(bridge_ifindex)
                raise

    async def release(self, port_ifindex: int, bridge_ifindex: int) -> None:
        """Take a host link out of this bridge; gone, or not in it any more: nothing to do."""
        with self._doing(f"release link {port_ifindex}", port_ifindex):
            port = self._find(port_ifindex)
            if port is not None and port.master == bridge_ifindex:
                self._ask(said.RTM_NEWLINK, asked.link_setting(port_ifindex, LinkChange(master=0)))

    async def change_addresses(self, ifindex: int, add: Sequence[str], remove: Sequence[str]) -> None:
        """Add addresses, marked as ours, then remove others; already there, or already gone, is fine.

        The kernel removes the secondary IPv4 addresses of a subnet with its first (Documentation/networking/ip-sysctl:
        promote_secondaries); those that nobody asked to remove are put back.
        """
        with self._doing(f"change addresses of link {ifindex}"):
            adding = [said.normal_address(address) for address in add]
            removing = {said.normal_address(address) for address in remove} - set(adding)
            self._get(ifindex)
            try:
                self._add_addresses(ifindex, adding)
                before = self._read_addresses(ifindex)
                for address in sorted(removing):
                    with Ignoring(errno.EADDRNOTAVAIL):
                        self._ask(said.RTM_DELADDR, asked.address_setting(ifindex, address, own=False))
                left = {a.address for a in self._read_addresses(ifindex)}
                for state in before:
                    if state.address not in left and state.address not in removing:
                        with Ignoring(errno.EEXIST):
                            setting = asked.address_setting(ifindex, state.address, own=state.own)
                            self._ask(said.RTM_NEWADDR, setting, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            finally:
                self._show_addresses(ifindex)

    async def delete(self, link: str, ifindex: int, expect_alias: str) -> None:
        """Delete a link if `ifindex` still has this name and alias, otherwise TransientError; gone already is fine."""
        with self._doing(f"delete {link}"):
            if self._find(ifindex) is None:
                return
            self._look_again(link, ifindex, expect_alias)
            with Ignoring(errno.ENODEV):
                await self._elsewhere(said.RTM_DELLINK, asked.link_setting(ifindex, LinkChange()))

    def _ask(self, kind: int, message: Writable, flags: int = NLM_F_ACK) -> list[Message]:
        return self._requests.ask(kind, message, flags)

    async def _elsewhere(self, kind: int, message: Writable, flags: int = NLM_F_ACK) -> None:
        """Ask in a thread: the kernel waits tens of milliseconds within making or deleting a link (RCU).

        The socket is opened here, because a namespace belongs to a thread.
        """
        requests = RequestSocket()

        def ask() -> None:
            with requests:
                requests.ask(kind, message, flags)

        await asyncio.to_thread(ask)

    def _find(self, ifindex: int) -> LinkState | None:
        """Look at one link in the kernel, past the cache; None when there is none."""
        with Ignoring(errno.ENODEV):
            for message in self._ask(said.RTM_GETLINK, asked.link_query(ifindex)):
                return said.link_state(message)
        return None

    def _get(self, ifindex: int) -> LinkState:
        link = self._find(ifindex)
        if link is None:
            raise TransientError(f"there is no link {ifindex} any more", reason="LinkGone")
        return link

    def _look_again(self, name: str, ifindex: int, expect_alias: str) -> None:
        link = self._get(ifindex)
        if (link.name, link.alias) != (name, expect_alias):
            raise TransientError(
                f"link {ifindex} is now {link.name} with alias {link.alias!r}, not {name} with {expect_alias!r}",
                reason="LinkChanged",
            )

    def _require_master(self, ifindex: int | None) -> None:
        """Of a refusal: the kernel calls a master that is gone an invalid argument, which would look permanent."""
        if ifindex and self._find(ifindex) is None:
            raise TransientError(f"the bridge of ifindex {ifindex} is gone", reason="LinkGone")

    def _reached_through(self, ifindex: int) -> str:
        """What is reached through a link itself, empty when nothing is."""
        addresses = [a.address for a in self._read_addresses(ifindex) if not a.link_local]
        if addresses:
            return f"has the address {', '.join(addresses)}"
        for family in (socket.AF_INET, socket.AF_INET6):
            with Ignoring(*_NO_ROUTES):
                routes = self._ask(said.RTM_GETROUTE, asked.route_query(family, ifindex), NLM_F_DUMP)
                if not all(said.is_link_local_route(route) for route in routes):
                    return "has routes"
        return ""

    def _read_addresses(self, ifindex: int) -> list[AddressState]:
        """The addresses of one link, from the kernel; none when the link is gone."""
        with Ignoring(errno.ENODEV):
            answer = self._ask(said.RTM_GETADDR, asked.address_query(ifindex), NLM_F_DUMP)
            stated = [s for m in answer if (s := said.address_state(m)) is not None]
            return [address for index, address in stated if index == ifindex]
        return []

    def _show_addresses(self, ifindex: int) -> None:
        """Read back the addresses of a link: events of IPv6 ones come from a work queue, after the answer."""
        self.catch_up()
        self._cache.put_addresses(ifindex, self._read_addresses(ifindex))

    def _add_addresses(self, ifindex: int, addresses: Sequence[str]) -> None:
        """Add those that are not there; where the link has no IPv6, IPv4 ones all the same, before that is told."""
        lost = []
        for address in addresses:
            try:
                with Ignoring(errno.EEXIST):
                    setting = asked.address_setting(ifindex, address, own=True)
                    self._ask(said.RTM_NEWADDR, setting, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            except KernelRefusedError as e:
                if e.number not in _NO_IPV6 or ":" not in address:
                    raise
                lost.append(address)
        if lost:
            link = self._get(ifindex).name
            what = f"{', '.join(lost)}: IPv6 is switched off on {link}"
            raise PermanentError(f"{what}; sysctl -w net.ipv6.conf.{link}.disable_ipv6=0", reason="Ipv6Off")

    @contextlib.contextmanager
    def _doing(self, what: str, ifindex: int | None = None) -> Iterator[None]:
        """Translate what goes wrong within, and read back what was done, also half of it.

        Events are not enough for a link that is changed: of a link that is down, the kernel announces neither its alias
        nor a bridge's settings (net/core/dev.c: netdev_state_change).
        """
        try:
            yield
        except KernelRefusedError as e:
            self._count(e.number)
            raise _translated(e, what) from e
        except NoAnswerError as e:
            raise OutcomeUnknownError(f"{what}: {e}") from e
        except OSError as e:
            self._count(e.errno or 0)
            raise TransientError(f"{what}: {e}") from e
        finally:
            self.catch_up()
            if ifindex is not None:
                self._read_back(ifindex)

    def _read_back(self, ifindex: int) -> None:
        """Put one link as it is now into the cache; where that fails, the events and the next full look decide."""
        with contextlib.suppress(KernelRefusedError, NoAnswerError, OSError):
            link = self._find(ifindex)
            if link is not None:
                self._cache.put(link)
                self._catch_up_with_vlans()


def _translated(error: KernelRefusedError, what: str) -> ActionError:
    """What follows from the kernel's refusal of a request."""
    if error.number in {errno.EPERM, errno.EACCES}:
        return PermanentError(f"{what}: not permitted; the agent needs CAP_NET_ADMIN", reason="NotPermitted")
    reason = _PASSING.get(error.number)
    if reason is not None:
        return TransientError(f"{what}: {error}", reason=reason)
    return PermanentError(f"{what}: {error}")
