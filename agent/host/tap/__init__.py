"""Taps by their descriptors.

Every function is an ioctl or two and never blocks for long. The sources are Documentation/networking/tuntap.rst,
linux/if_tun.h and linux/ethtool.h. Errors are TransientError where another try may help, else PermanentError.
"""

from agent.host.tap.fetch import fetch_descriptor, fetch_descriptors, find_descriptor_numbers, find_same
from agent.host.tap.macvtap import Births, open_macvtap
from agent.host.tap.queues import Attachment, attached_link, attachment, close_all, keep, open_tap, rearm
from agent.host.tap.settings import TapSettings, read_settings, settings_from_virtio
from agent.host.tap.uevents import LOST, Uevents
from agent.host.tap.vhost import open_vhost, vhost_problem

__all__ = [
    "LOST",
    "Attachment",
    "Births",
    "TapSettings",
    "Uevents",
    "attached_link",
    "attachment",
    "close_all",
    "fetch_descriptor",
    "fetch_descriptors",
    "find_descriptor_numbers",
    "find_same",
    "keep",
    "open_macvtap",
    "open_tap",
    "open_vhost",
    "read_settings",
    "rearm",
    "settings_from_virtio",
    "vhost_problem",
]
