"""The page on `vmhost doctor`, from the doctor's own table of what it can find.

`python -m docs.doctor > docs/doctor.md` writes it; a test says when it is stale.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator

from agent.core.doctor.findings import KINDS

INTRODUCTION = """\
# What breaks guests though all is as the units say: `vmhost doctor`
<!-- Written by `python -m docs.doctor > docs/doctor.md`. -->

The agent heals what is its own. What others do beside it (a firewall's policy, a parameter, another DHCP server) it
never touches: it tells what it finds, where, what that does to guests, and the commands that mend it.

    $ vmhost doctor
    bridge/br-lan: ForeignDrop: policy drop of chain FORWARD of table ip filter, Docker's
      it drops what guests send to elsewhere, the answers; what another table admits does not overrule it
      $ iptables-nft -I DOCKER-USER -i br-lan -j ACCEPT
      $ iptables-nft -I DOCKER-USER -o br-lan -j ACCEPT
    1 finding

Exit code 0: nothing found; 1: something; 3: no agent answers. `--json` has `findings`, each with `finding`,
`resource`, `what`, `why` and `commands`, and `unexamined`: what could not be looked at, and why (`nft` is not there, or
there are more than 8 MiB of rules). Members of the group `vmhost` may ask, as for `status`.

The agent looks by itself each minute, and within seconds after links, units or somebody's nftables change, at most
every five seconds, beside its passes; where a look takes long, as with thousands of rules, it rests twenty times as
long. What it found is a condition in `vmhost status` (none that makes anything deviate), an event when it comes and
goes, and `vmhost_findings{finding,resource}`. A finding is told once two looks, a second apart, agree on it: while
links are being made, much is wrong for an instant. It is over once a look does not find it any more.

A command is a proposal: it is as narrow as what is broken, but only you know why somebody's rule is there. What it does
lasts until the next boot or reload of whoever made the rule; each section says how it is kept. Opening a foreign chain
for a bridge opens nothing of ours: the table `inet vmhost` goes on dropping what is not published. With firewalld the
bridge comes into its zone `trusted`, so guests then reach the host's own services, too; a zone of your own is narrower.
"""

RULES = """
## How rules are judged
Packets that are to pass (what guests of a bridge send to elsewhere, the answers, each published port, what the bridge's
own servers are asked, frames between its ports) are led through each chain that somebody else has at their hooks,
jumps, sets, maps and all. Of such a packet only so much is known as is certain; where it goes, and to which port, is
not, so a rule about that may match or not. Only what is dropped on every way through is told. So somebody's rule
against port 25 is no finding, and one against a guest's address is; nor is one that drops above some rate. What sets
with more than 20,000 members hold is not known either.

A rule that names the bridge, a tap, or addresses within its subnet is one against guests, and the command deletes it.
For others, a rule is put before them: by iptables where iptables made the table (in `DOCKER-USER`, if packets come by
there first), by `ufw` and `firewall-cmd` for their own, else by `nft`.

Chains of type `nat` are looked at for what they do to bridged packets only. What eBPF programs, `tc` filters, or rules
on other hosts drop is not seen; nor what XDP does.
"""


def page() -> str:
    """The page as Markdown."""
    return "\n".join([INTRODUCTION.rstrip("\n"), *_sections()]) + "\n" + RULES


def _sections() -> Iterator[str]:
    for name, kind in KINDS.items():
        yield f"\n## `{name}`"
        yield _filled(f"{kind.told}.")
        yield ""
        yield _filled(f"- No finding: {kind.never}.")
        yield _filled(f"- To keep it: {kind.kept}.")


def _filled(text: str) -> str:
    return textwrap.fill(
        text, 118, break_on_hyphens=False, break_long_words=False, subsequent_indent="  " if text[0] == "-" else ""
    )


if __name__ == "__main__":
    sys.stdout.write(page())
