"""What an action does to whoever uses a guest, and why it is planned."""

from __future__ import annotations

from enum import StrEnum


class Disruption(StrEnum):
    """What a guest's users notice of an action."""

    NONE = "none"
    LINK = "link"
    RESTART = "restart"
    STOP = "stop"


class Reason(StrEnum):
    """Why an action is planned; the label of `vmhost_repairs_total`."""

    MISSING = "missing"
    DETACHED = "detached"
    DOWN = "down"
    MTU = "mtu"
    ADDRESS = "address"
    MAC = "mac"
    RENAMED = "renamed"
    UNMARKED = "unmarked"
    SETTINGS = "settings"
    RATE = "rate"
    ELEMENT = "element"
    VLAN = "vlan"
    SPACE = "space"
    EXITED = "exited"
    WANTED = "wanted"
    UNWANTED = "unwanted"
    RESTART = "restart"
    RESET = "reset"
    EDITED = "edited"
    REBOOT = "reboot"
    HOST_DOWN = "host-down"
    PAUSE = "pause"
    RESUME = "resume"
