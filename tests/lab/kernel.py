"""Which features of the kernel tests ask for by `pytest.mark.kernel(…)`, and how each is tried.

A feature is tried by doing what a test would do, in a network namespace that ends with the attempt: names of modules
and options of the build differ from kernel to kernel.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterable

PAIR = "ip link add try0 type veth peer name try1 && "
TRIALS = {
    "8021q": PAIR + "ip link add link try0 name try0.5 type vlan id 5",
    "bridge-vlan": "ip link add try0 type bridge vlan_filtering 1 && ip -d link show try0 | grep -q 'vlan_filtering 1'",
    "dummy": "ip link add try0 type dummy",
    "bond": "ip link add try0 type bond",
    "macvtap": PAIR + "ip link add link try0 name try2 type macvtap mode bridge",
    "fq_codel": PAIR + "tc qdisc add dev try0 root fq_codel",
    "tun": "ip tuntap add dev try0 mode tap",
    "vhost_net": "test -c /dev/vhost-net && exec 3<>/dev/vhost-net",
    "cgroup2": "grep -q memory /sys/fs/cgroup/cgroup.controllers",
    "psi": "cat /proc/pressure/memory",
}
TRIAL_TIMEOUT_S = 60


@functools.cache
def has(feature: str) -> bool:
    """Whether this kernel has a feature; KeyError for one that nobody knows how to try."""
    trial = TRIALS[feature]
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", trial],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=TRIAL_TIMEOUT_S,
        check=False,
    )
    return done.returncode == 0


def lacking(features: Iterable[str]) -> list[str]:
    """Those of the features that this kernel does not have."""
    return [feature for feature in features if not has(feature)]
