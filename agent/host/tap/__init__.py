"""Taps by their descriptors.

Every function is an ioctl or two and never blocks for long. The sources are Documentation/networking/tuntap.rst,
linux/if_tun.h and linux/ethtool.h. Errors are TransientError where another try may help, else PermanentError.
"""

from agent.host.tap.fetch import fetch_descriptor, find_descriptor_number
from agent.host.tap.queues import attached_link, keep, open_tap, rearm
from agent.host.tap.settings import TapSettings, read_settings, settings_from_virtio

__all__ = [
    "TapSettings",
    "attached_link",
    "fetch_descriptor",
    "find_descriptor_number",
    "keep",
    "open_tap",
    "read_settings",
    "rearm",
    "settings_from_virtio",
]
