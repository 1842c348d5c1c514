"""Links of the kernel with addresses and limits, by rtnetlink: a cache that follows its events, and the changes.

`wire` moves bytes, `messages` and `traffic` give them a meaning, `cache` keeps what was said last; `links` and, above
it, `rates` are what others use. `routes6` are routes and proxy neighbours of IPv6 modes.
"""

from agent.host.netlink.cache import LinkCache
from agent.host.netlink.links import Links
from agent.host.netlink.main_table import MainTable
from agent.host.netlink.messages import LinkStatistics
from agent.host.netlink.rates import RatedLinks
from agent.host.netlink.routes6 import Routes6
from agent.host.netlink.vlan_links import VlanLinks

__all__ = ["LinkCache", "LinkStatistics", "Links", "MainTable", "RatedLinks", "Routes6", "VlanLinks"]
