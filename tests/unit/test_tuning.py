"""What a running guest is told and given of its unit: limits, cables, balloon, CPUs and media, and what waits."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from agent.core.actions import Action, kind_of
from agent.core.desired import Desired, DiskSpec, NicSpec, VmSpec
from agent.core.edits.digest import pending_changes
from agent.core.edits.live import live_edit
from agent.core.edits.tuning import Setting, command_of, in_words, tuned_at_launch, untold
from agent.core.limits import most_cpus, tasks_needed, wanted_limits
from agent.core.model.host import apply
from agent.core.observed import DiskState, Observed, VmState
from agent.core.planner.draft import Draft, Plan
from agent.core.planner.room import Room, overhead_bytes
from agent.core.planner.vms import plan_kept
from agent.core.planning import plan
from agent.core.preconditions import PreconditionError
from agent.core.qemu.argv import LaunchFiles, devices_at_launch, drive_node, qemu_argv
from agent.core.qemu.cdrom import is_medium_of, medium_node
from agent.core.tell.describe import describe
from agent.unitfile.parse import parse_unit

NIC = NicSpec("lan", "br0", "02:00:00:00:00:02", "web-lan", 0)
DATA = DiskSpec("data", "/srv/data.raw", "raw", 1)
CD = DiskSpec("cd", "/srv/a.iso", "raw", 2, read_only=True, media="cdrom")
OTHER = replace(CD, path="/srv/b.iso")
PLAIN = VmSpec("web", "uuid-web", 1_900_000_000, "web.toml", memory_mib=512, nics=(NIC,), disks=(DATA,))
TUNED = replace(
    PLAIN, balloon_mib=256, nics=(replace(NIC, link="down"),), disks=(replace(DATA, iops=100, bandwidth_bytes=1 << 20),)
)
ALL: tuple[Setting, ...] = (("balloon", "256"), ("link/lan", "down"), ("throttle/data", "100 1048576"))
NONE: tuple[Setting, ...] = (("balloon", "512"), ("link/lan", "up"), ("throttle/data", "0 0"))


def run(spec: VmSpec, **changes: object) -> VmState:
    """A guest as it is when its QEMU has just come up and holds it."""
    media = {disk.id: drive_node(disk) for disk in spec.disks if disk.media == "cdrom"}
    cpus = None if spec.max_cpus is None else spec.cpus
    state = VmState(spec, True, 4711, run_state="prelaunch", cpus=cpus, tuned=tuned_at_launch(spec), media=media)
    return replace(replace(state, devices=devices_at_launch(spec)), **changes)  # type: ignore[arg-type]


def planned(wanted: VmSpec, state: VmState, **disks: bool) -> Plan:
    """What is planned for the guest itself; files are there unless named with False."""
    present = {disk.path: True for spec in (wanted, state.spec) for disk in spec.disks}
    looks = {f"/srv/{name}.iso": there for name, there in disks.items()}
    states = {path: DiskState(there, True, known=False) for path, there in (present | looks).items()}
    decided = plan(Desired(vms={"web": wanted}), Observed(vms={"web": state}, disks=states), 100.0)
    actions = tuple(action for action in decided.actions if action.resource.startswith("vm/"))
    return replace(decided, actions=actions)


def kinds(actions: tuple[Action, ...]) -> list[str]:
    return [kind_of(action) for action in actions]


@pytest.mark.parametrize(
    ("state", "settings"),
    [
        (run(PLAIN), ()),
        (run(TUNED), ALL),
        (run(TUNED, tuned=dict(ALL)), ()),
        (run(PLAIN, tuned=dict(ALL)), NONE),
        (run(PLAIN, tuned=dict(NONE)), ()),
        (run(TUNED, tuned=dict(NONE[1:])), ALL),
        # Of a device that is not there yet, or of which that is not known, nothing is told.
        (run(TUNED, devices=frozenset({"nic-lan"})), ALL[1:2]),
        (run(TUNED, devices=None), ()),
        # A guest never keeps more than it was started with.
        (run(replace(PLAIN, balloon_mib=1024)), ()),
    ],
)
def test_what_qemu_is_still_to_be_told(state: VmState, settings: tuple[Setting, ...]) -> None:
    assert untold(state) == settings


@pytest.mark.parametrize(
    ("setting", "command", "words"),
    [
        (ALL[0], ("balloon", {"value": 256 << 20}), "balloon to 256 MiB"),
        (ALL[1], ("set_link", {"name": "tap-lan", "up": False}), "unplug the cable of lan"),
        (NONE[1], ("set_link", {"name": "tap-lan", "up": True}), "plug the cable of lan"),
        (
            ("throttle/data", "100 0"),
            (
                "block_set_io_throttle",
                {
                    "id": "/machine/peripheral/disk-data/virtio-backend",
                    "iops": 100,
                    "bps": 0,
                    **dict.fromkeys(("iops_rd", "iops_wr", "bps_rd", "bps_wr"), 0),
                },
            ),
            "limit data to 100 operations/s",
        ),
    ],
)
def test_how_it_is_told(setting: Setting, command: tuple[str, dict[str, object]], words: str) -> None:
    assert command_of(setting) == command
    assert in_words(setting) == words


def test_limits_in_words() -> None:
    assert in_words(ALL[2]) == "limit data to 100 operations/s and 1048576 bytes/s"
    assert in_words(NONE[2]) == "limit data no more"


def test_a_guest_does_not_run_before_its_limits_count() -> None:
    held = run(TUNED)
    (tune,) = planned(TUNED, held).actions
    assert (kind_of(tune), tune.disruption) == ("tune-vm", "link")
    assert describe(tune) == (
        "web: balloon to 256 MiB, unplug the cable of lan, limit data to 100 operations/s and 1048576 bytes/s"
    )
    observed = apply(Observed(vms={"web": held}), tune)
    told = observed.vms["web"]
    (release,) = planned(TUNED, told).actions
    assert kind_of(release) == "release-vm"
    with pytest.raises(PreconditionError, match="never runs without its limits"):
        apply(Observed(vms={"web": held}), release)
    blind = planned(TUNED, replace(held, devices=None))
    assert (blind.actions, list(blind.awaited)) == ((), ["vm/web"])
    in_flight = Observed(vms={"web": held}, in_flight={"vm/web": "tune-vm vm/web"})
    waiting = plan(Desired(vms={"web": TUNED}), in_flight, 100.0)
    assert "release-vm" not in kinds(waiting.actions)
    assert "vm/web" in waiting.deviating
    (untune,) = planned(PLAIN, replace(told, spec=PLAIN, run_state="running")).actions
    assert untune.disruption == "none"


def test_a_guest_whose_unit_is_held_keeps_its_limits() -> None:
    draft = Draft(Observed(), 100.0, Room({}, Observed()), {})
    plan_kept(draft, "web", run(TUNED, run_state="running"))
    assert "tune-vm" in kinds(draft.finish(None).actions)


@pytest.mark.parametrize(
    ("launched", "wanted", "cpus"),
    [((2, 4), 3, 3), ((2, 4), 4, 4), ((2, 4), 5, 2), ((2, 4), 1, 2), ((2, 4), 2, 2), ((2, None), 3, 2)],
)
def test_cpus_come_up_to_the_room_of_the_launch(launched: tuple[int, int | None], wanted: int, cpus: int) -> None:
    spec = replace(PLAIN, cpus=launched[0], max_cpus=launched[1])
    state = run(spec)
    edited = replace(spec, cpus=wanted)
    edit = live_edit(state, edited)
    taken = spec if edit is None else edit.spec
    assert taken.cpus == cpus
    assert [change.key for change in pending_changes(taken, edited)] == ["cpus"] * (cpus != wanted)


def test_cpus_that_are_missing_are_plugged() -> None:
    spec = replace(PLAIN, cpus=3, max_cpus=4)
    state = replace(run(spec), run_state="running", cpus=1)
    (action,) = planned(spec, state).actions
    assert describe(action) == "plug CPUs into web, which is to have 3"
    after = apply(Observed(vms={"web": state}), action).vms["web"]
    assert planned(spec, after).actions == ()
    for unknown_or_more in (None, 4):
        assert planned(spec, replace(state, cpus=unknown_or_more)).actions == ()
    with pytest.raises(PreconditionError):
        apply(Observed(vms={"web": replace(state, spec=replace(spec, max_cpus=2))}), action)


def test_room_for_cpus_counts_wherever_cpus_do() -> None:
    roomy = replace(PLAIN, cpus=2, max_cpus=8, limits=replace(PLAIN.limits, tasks=83))
    assert (most_cpus(roomy), most_cpus(PLAIN)) == (8, 1)
    assert wanted_limits(roomy, roomy).tasks == tasks_needed(8)
    assert overhead_bytes(roomy, kvm=True) - overhead_bytes(PLAIN, kvm=True) == 7 << 20
    argv = qemu_argv(replace(roomy, nics=(), disks=()), "qemu", LaunchFiles("/r"), kvm=True)
    assert ("-smp", "cpus=2,maxcpus=8") in pairwise(argv)


def test_a_balloon_needs_its_device() -> None:
    wanted = replace(PLAIN, balloon_mib=256)
    edit = live_edit(run(PLAIN), wanted)
    assert edit is not None
    assert edit.spec == wanted
    older = run(PLAIN, devices=devices_at_launch(PLAIN) - {"balloon"})
    assert live_edit(older, wanted) is None
    assert [(c.key, c.before, c.after) for c in pending_changes(older.spec, wanted)] == [("balloon", "", "256M")]
    assert planned(wanted, replace(older, run_state="running", reboot_ends=True)).actions == ()
    own = replace(PLAIN, extra_args=("-device", "virtio-balloon-pci"))
    assert "balloon" not in devices_at_launch(own)
    blind = run(PLAIN, devices=None, run_state="running")
    assert "vm/web" in planned(wanted, blind).awaited


@pytest.mark.parametrize("machine", ["q35", "pc", "microvm"])
def test_the_balloon_takes_nobodys_place(machine: str) -> None:
    spec = replace(PLAIN, machine=machine, nics=(), disks=(), watchdog="reset" if machine != "microvm" else None)
    argv = qemu_argv(spec, "qemu", LaunchFiles("/r"), kvm=True)
    devices = [json.loads(value) for name, value in pairwise(argv) if name == "-device"]
    places = [(one["bus"], one["addr"]) for one in devices if "addr" in one]
    assert len(places) == len(set(places))
    assert [one["addr"] for one in devices if one["id"] == "balloon"] == ["0x3.1"]


def test_a_medium_is_changed_put_in_and_taken_out() -> None:
    spec = replace(PLAIN, disks=(CD,))
    state = replace(run(spec), run_state="running")
    for drive, words in (
        (OTHER, "put /srv/b.iso into cd of web"),
        (replace(CD, path=""), "take the medium out of cd of web"),
    ):
        wanted = replace(spec, disks=(drive,))
        (take_over,) = planned(wanted, state).actions
        assert describe(take_over) == "web takes over disk.cd.path while it runs"
        observed = apply(Observed(vms={"web": state}, disks={OTHER.path: DiskState(True, True, False)}), take_over)
        (change,) = planned(wanted, observed.vms["web"]).actions
        assert describe(change) == words
        changed = apply(observed, change).vms["web"]
        assert changed.media == {"cd": drive_node(drive)}
        assert planned(wanted, changed).actions == ()


def test_a_medium_whose_file_is_missing_leaves_the_former_one_in() -> None:
    spec = replace(PLAIN, disks=(OTHER,))
    state = replace(run(replace(PLAIN, disks=(CD,))), spec=spec, run_state="running")
    decided = planned(spec, state, b=False)
    assert decided.actions == ()
    assert [(c.resource, c.type) for c in decided.conditions] == [("vm/web/disk/cd", "DiskMissing")]
    assert kinds(planned(spec, state).actions) == ["change-medium"]


def test_a_change_that_was_broken_off_is_done_again() -> None:
    """The medium is in, the tray may be open still: only what was written down was done whole."""
    spec = replace(PLAIN, disks=(OTHER,))
    state = replace(run(spec), run_state="running", tuned={"medium/cd": drive_node(CD)})
    assert kinds(planned(spec, state).actions) == ["change-medium"]


def test_a_medium_of_an_older_launch_waits_for_a_restart() -> None:
    state = run(replace(PLAIN, disks=(CD,)), tuned={})
    wanted = replace(PLAIN, disks=(OTHER,))
    assert live_edit(state, wanted) is None
    assert [change.key for change in pending_changes(state.spec, wanted)] == ["disk.cd.path"]
    assert planned(state.spec, replace(state, run_state="running", media={"cd": "disk-cd"})).actions == ()


def test_a_disk_s_path_waits_for_a_restart() -> None:
    assert live_edit(run(PLAIN), replace(PLAIN, disks=(replace(DATA, path="/srv/b.raw"),))) is None


def test_a_medium_is_known_by_its_drive_and_path_and_qemu_takes_its_name() -> None:
    longest = "a" * 15
    node = medium_node(longest, "/srv/a.iso")
    assert len(f"file-{node.partition('-')[2]}") <= 31
    assert len(node) <= 31
    assert node != medium_node(longest, "/srv/b.iso")
    assert is_medium_of(longest, node)
    assert not is_medium_of("a", node)
    assert not is_medium_of("cd", "disk-cd")


MISTAKES = {
    "cpus = 4\nmax-cpus = 2": "3:1: error: max-cpus must be at least cpus, which is 4 (did you mean 4?)",
    "max-cpus = 289": "2:1: error: max-cpus must be a whole number, 1 to 288, not 289",
    'machine = "microvm"\nkernel = "/k"\nmax-cpus = 2': '4:1: error: machine = "microvm" takes no CPUs while it runs '
    '(take machine = "q35")',
    "max-cpus = 4\ntasks = 83": "3:1: error: tasks must be at least 84 for max-cpus = 4, not 83: QEMU has a thread for "
    "each CPU, up to 64 for disks and 16 others, and aborts without (tasks = 84)",
    'memory = "1G"\nballoon = "2G"': "3:1: error: balloon must be at most memory, which is 1024M (without the key it "
    "keeps all of it)",
    'balloon = "1G"': "2:1: error: balloon must be at most memory, which is 512M (without the key it keeps all of it)",
    'balloon = "256M"\nextra-args = ["-device", "virtio-balloon-pci"]': "2:1: error: balloon needs the guest's only "
    "balloon, and extra-args bring another (take that out)",
    'disk.d = { path = "/d.raw", iops = 0 }': "2:29: error: iops must be a whole number, 1 to 1000000000, not 0",
    'disk.d = { path = "/d.raw", bandwidth = "2T" }': '2:29: error: bandwidth must be "1K" to "1T" in a second, not '
    '"2T"',
    'disk.d = { path = "/d.raw", bandwidth = 5 }': '2:29: error: bandwidth must be a size such as "512M" or "32G", not '
    '5 (did you mean "5M"?)',
    'disk.cd = { media = "cdrom", bandwidth = "5M" }': '2:30: error: bandwidth is for disks, not for media = "cdrom"',
    'nic.n = { bridge = "b", link = "off" }': '2:25: error: link must be "up" or "down", not "off"',
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=range(len(MISTAKES)))
def test_mistakes(text: str, message: str) -> None:
    assert [str(error) for error in parse_unit("u", f"[vm.web]\n{text}\n".encode()).errors] == [f"u:{message}"]
