"""Limits of what passes a tap: token buckets, and the ifb link that what comes in by the tap is led through.

Own disciplines are known by their handle and own filters by their priority, and the kernel itself checks the handle: so
what an operator put on a tap meanwhile is refused by the kernel, not lost.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from agent.core import marks
from agent.core.actions import ChangeRate, LinkChange
from agent.core.errors import OutcomeUnknownError, TransientError
from agent.core.netlink import NLM_F_ACK
from agent.core.observed import LinkState
from agent.core.rates import shape_of
from agent.host.netlink import messages as said
from agent.host.netlink import requests as asked
from agent.host.netlink import traffic
from agent.host.netlink.links import Links
from agent.host.netlink.wire import NLM_F_CREATE, NLM_F_EXCL, Ignoring, KernelRefusedError

_GONE = (errno.ENOENT, errno.EINVAL)
"""What the kernel says to the removal of a discipline or filter that is not there, or not ours."""


_LACKING = (errno.ENOENT, errno.EOPNOTSUPP)
"""What the kernel says to a kind of link, discipline, filter or action that it does not have."""


@contextlib.contextmanager
def _needing(what: str) -> Iterator[None]:
    """Say what a kernel lacks. It may get it yet, so that is tried again, as is what changed between two requests."""
    try:
        yield
    except KernelRefusedError as e:
        if e.number in _LACKING:
            message = f"this kernel has no {what}, so the limit is not in force: {e}"
            raise TransientError(message, reason="KernelLacks") from e
        if e.number == errno.EINVAL:
            raise TransientError(f"the kernel refuses {what}: {e}") from e
        raise


class RatedLinks(Links):
    """Links, and the limits of what passes them."""

    async def change_rate(self, action: ChangeRate) -> None:
        """Set or take away the limits of a tap, if its ifindex still has this name and alias.

        Otherwise TransientError with reason LinkChanged. Something foreign in the way: TransientError with reason
        Conflict. After an error some of it may be done; it can be done again from any point.
        """
        with self._doing(f"change the limits of {action.link}", action.ifindex):
            self._look_again(action.link, action.ifindex, action.expect_alias)
            if action.rate_in_bps is not None:
                self._set_bucket(action.ifindex, action.rate_in_bps, action.mtu)
            if action.rate_out_bps:
                await self._limit_ingress(action, action.rate_out_bps)
            elif action.rate_out_bps == 0:
                await self._unlimit_ingress(action)

    def _set_bucket(self, ifindex: int, rate_bps: int, mtu: int) -> None:
        if rate_bps:
            setting = traffic.bucket_setting(ifindex, shape_of(rate_bps, mtu))
            with _needing("token bucket (sch_tbf)"):
                self._ask(traffic.RTM_NEWQDISC, setting, NLM_F_ACK | NLM_F_CREATE)
        else:
            with Ignoring(*_GONE):
                self._ask(traffic.RTM_DELQDISC, traffic.bucket_removal(ifindex))

    async def _limit_ingress(self, action: ChangeRate, rate_bps: int) -> None:
        """The ifb is complete before anything is led to it: one that is down, or gone, swallows what a guest sends."""
        ifb = await self._ensure_ifb(action)
        self._set_bucket(ifb, rate_bps, action.mtu)
        self._look_again(action.link, action.ifindex, action.expect_alias)
        flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
        with Ignoring(errno.EEXIST), _needing("ingress discipline (sch_ingress)"):
            self._ask(traffic.RTM_NEWQDISC, traffic.ingress_setting(action.ifindex), flags)
        seen = self._look_at_ingress(action.ifindex)
        if seen is not None and seen.redirect == ifb:
            return
        if seen is None or (seen.redirect is None and (seen.kind != "ingress" or seen.foreign)):
            raise TransientError(f"{action.link} has filters that are not ours", reason="Conflict")
        with Ignoring(*_GONE):
            self._ask(traffic.RTM_DELTFILTER, traffic.filter_removal(action.ifindex))
        redirect = traffic.redirect_setting(action.ifindex, ifb)
        with _needing("redirecting filter (cls_u32, act_mirred)"):
            self._ask(traffic.RTM_NEWTFILTER, redirect, flags)

    async def _ensure_ifb(self, action: ChangeRate) -> int:
        """The ifindex of the NIC's ifb, which is there afterwards, marked and up."""
        name = marks.derived_ifb(action.vm, action.nic)
        self.catch_up()
        if name not in self.snapshot:
            with _needing("ifb links"):
                await self._elsewhere(said.RTM_NEWLINK, asked.new_ifb(name), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            self.catch_up()
        ifb = self.snapshot.get(name)
        if ifb is None:
            raise OutcomeUnknownError(f"{name} is gone again", reason="LinkGone")
        if not marks.is_own_ifb(ifb):
            raise TransientError(f"a link {name} exists that is not ours", reason="Conflict")
        mark = LinkChange(alias=marks.ifb_mark(action.vm, action.nic), up=True)
        self._ask(said.RTM_NEWLINK, asked.link_setting(ifb.ifindex, mark))
        self._read_back(ifb.ifindex)
        return ifb.ifindex

    async def _unlimit_ingress(self, action: ChangeRate) -> None:
        """The tap leads nowhere any more before the ifb goes. Filters of an operator's stay, with their discipline."""
        seen = self._look_at_ingress(action.ifindex)
        if seen is not None and (seen.foreign or seen.kind != "ingress"):
            with Ignoring(*_GONE):
                self._ask(traffic.RTM_DELTFILTER, traffic.filter_removal(action.ifindex))
        elif seen is not None:
            with Ignoring(*_GONE):
                self._ask(traffic.RTM_DELQDISC, traffic.ingress_setting(action.ifindex))
        self.catch_up()
        ifb = self._own_ifb(action)
        if ifb is not None:
            await self.delete(ifb.name, ifb.ifindex, ifb.alias)

    def _own_ifb(self, action: ChangeRate) -> LinkState | None:
        ifb = self.snapshot.get(marks.derived_ifb(action.vm, action.nic))
        return ifb if ifb is not None and marks.is_own_ifb(ifb) else None
