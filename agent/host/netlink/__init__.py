"""Links and addresses of the kernel, by rtnetlink: a cache that follows its events, and the changes of links.

`wire` moves bytes, `messages` gives them a meaning, `cache` keeps what was said last, `links` is what others use.
"""

from agent.host.netlink.cache import LinkCache
from agent.host.netlink.links import Links
from agent.host.netlink.messages import LinkStatistics

__all__ = ["LinkCache", "LinkStatistics", "Links"]
