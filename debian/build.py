"""Builds the Debian package: `python debian/build.py WHEEL VERSION OUT.deb`, from the environment of the checkout.

The package carries an environment of its own in /opt/vmhost: what requirements.lock names, by its hashes, without what
is for development only, and byte-compiled. The same checkout gives the same bytes: files have the time of the last
commit (SOURCE_DATE_EPOCH), compiled modules carry no time at all.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from email.utils import formatdate
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

from dashboards import written
from docs import completion, manual

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "debian"
PREFIX = Path("opt/vmhost")
COMMANDS = {"vmhost": "agent.cli.main", "vmhost-agent": "agent.__main__"}
SHARED = {
    "systemd/vmhost-agent.service": "lib/systemd/system/vmhost-agent.service",
    "systemd/vmhost-guests.service": "lib/systemd/system/vmhost-guests.service",
    "systemd/vmhost.slice": "lib/systemd/system/vmhost.slice",
    "systemd/sysusers.d/vmhost.conf": "usr/lib/sysusers.d/vmhost.conf",
    "systemd/tmpfiles.d/vmhost.conf": "usr/lib/tmpfiles.d/vmhost.conf",
    "systemd/modules-load.d/vmhost.conf": "usr/lib/modules-load.d/vmhost.conf",
    "systemd/udev/70-vmhost.rules": "lib/udev/rules.d/70-vmhost.rules",
    "systemd/network/10-vmhost.network": "lib/systemd/network/10-vmhost.network",
    "debian/lintian-overrides": "usr/share/lintian/overrides/vmhost",
    "systemd/notify.conf": "usr/share/doc/vmhost/notify.conf",
    "units/schema.json": "usr/share/vmhost/schema.json",
    "docs/monitoring.md": "usr/share/doc/vmhost/monitoring.md",
    "docs/runbooks.md": "usr/share/doc/vmhost/runbooks.md",
    **{f"dashboards/{name}": f"usr/share/vmhost/dashboards/{name}" for name in written.files()},
}
DOC = Path("usr/share/doc/vmhost")
MAINTAINER = "the vmhost authors <vmhost@example.org>"


def main(wheel: Path, version: str, out: Path) -> None:
    """Build the package, or leave nothing at `out`."""
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    with tempfile.TemporaryDirectory(prefix="vmhost-deb-") as folder:
        tree = Path(folder, "tree")
        install_environment(tree, wheel)
        install_shared(tree)
        install_manual(tree)
        install_documents(tree, version, epoch)
        install_control(tree, version)
        settle(tree, epoch)
        temporary = out.with_suffix(".new")
        run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(tree), str(temporary))
        temporary.rename(out)


def install_environment(tree: Path, wheel: Path) -> None:
    """The virtual environment (venv's layout: pyvenv.cfg beside bin) and the two commands."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tree / PREFIX / "lib" / python / "site-packages"
    site.mkdir(parents=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--root-user-action=ignore",
    ]
    into = ["--target", str(site), "--no-compile", "--no-deps"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as lock:
        lock.writelines(runtime_lock())
        lock.flush()
        run(*pip, *into, "--only-binary", ":all:", "--require-hashes", "-r", lock.name)
    shutil.rmtree(site / "bin")  # commands of the distributions, with this build's paths in them
    run(*pip, *into, "--no-index", str(wheel))
    shutil.rmtree(site / "bin")
    for record in (*site.glob("*.dist-info/direct_url.json"), *site.glob("*.dist-info/RECORD")):
        record.unlink()  # where it was built, and the files that were just removed
    binaries = tree / PREFIX / "bin"
    binaries.mkdir()
    (binaries / "python3").symlink_to(f"/usr/bin/{python}")
    (tree / PREFIX / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (tree / "usr/bin").mkdir(parents=True)
    for command, module in COMMANDS.items():
        script = f"#!/{PREFIX}/bin/python3 -I\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n"
        (binaries / command).write_text(script)
        (binaries / command).chmod(0o755)
        (tree / "usr/bin" / command).symlink_to(f"/{PREFIX}/bin/{command}")
    compiling = [sys.executable, "-m", "compileall", "-q", "-s", str(tree), "-p", "/"]
    run(*compiling, "--invalidation-mode", "unchecked-hash", str(site), PYTHONHASHSEED="0")


def runtime_lock() -> Iterator[str]:
    """The entries of requirements.lock that the agent needs: its requirements, and theirs."""
    wanted = set(_closure("vmhost"))
    entry: list[str] = []
    for line in (ROOT / "requirements.lock").read_text().splitlines(keepends=True):
        if re.match(r"[a-z0-9]", line):
            yield from entry
            entry = [line] if _canonical(line.partition("==")[0]) in wanted else []
        elif entry and line.startswith("    --hash"):
            entry.append(line)
    yield from entry


def _closure(name: str) -> set[str]:
    found, left = set[str](), [name]
    while left:
        for text in requires(left.pop()) or ():
            requirement = Requirement(text)
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if needed and _canonical(requirement.name) not in found:
                found.add(_canonical(requirement.name))
                left.append(requirement.name)
    return found


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def install_shared(tree: Path) -> None:
    """Files that are installed as they lie in the checkout, and the example units."""
    for source, target in SHARED.items():
        (tree / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / source, tree / target)
    shutil.copytree(ROOT / "units", tree / DOC / "examples")


def install_manual(tree: Path) -> None:
    """Manual pages and shell completion, as the commands and the schema of this checkout give them."""
    for page, text in manual.pages().items():
        folder = tree / "usr/share/man" / f"man{page[-1]}"
        folder.mkdir(parents=True, exist_ok=True)
        write_gzip(folder / f"{page}.gz", text)
    completions = tree / "usr/share/bash-completion/completions"
    completions.mkdir(parents=True)
    (completions / "vmhost").write_text(completion.bash())


def install_documents(tree: Path, version: str, epoch: int) -> None:
    """Copyright and changelog, where Debian's policy wants them."""
    license_text = "".join(f" {line or '.'}\n" for line in (ROOT / "LICENSE").read_text().splitlines())
    (tree / DOC / "copyright").write_text(filled(HERE / "copyright", {"LICENSE": license_text.rstrip("\n")}))
    entry = f"vmhost ({version}) unstable; urgency=medium\n\n  * See CHANGELOG.md.gz.\n"
    write_gzip(tree / DOC / "changelog.gz", f"{entry}\n -- {MAINTAINER}  {formatdate(epoch)}\n")
    write_gzip(tree / DOC / "CHANGELOG.md.gz", (ROOT / "CHANGELOG.md").read_text())


def install_control(tree: Path, version: str) -> None:
    """What dpkg reads. The extension modules fit one minor version of Python only."""
    folder = tree / "DEBIAN"
    folder.mkdir()
    files = [path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink()]
    minor = sys.version_info.minor
    values = {
        "VERSION": version,
        "MAINTAINER": MAINTAINER,
        "ARCHITECTURE": output("dpkg", "--print-architecture").strip(),
        "INSTALLED_KIB": str(sum(-(-path.stat().st_size // 1024) for path in files)),
        "PYTHON": f"3.{minor}",
        "NEXT_PYTHON": f"3.{minor + 1}",
    }
    (folder / "control").write_text(filled(HERE / "control", values))
    for script in ("postinst", "prerm", "postrm"):
        shutil.copyfile(HERE / script, folder / script)
        (folder / script).chmod(0o755)
    sums = output("md5sum", *(str(path.relative_to(tree)) for path in files), cwd=tree)
    (folder / "md5sums").write_text(sums)


def settle(tree: Path, epoch: int) -> None:
    """The same modes and times whoever builds it."""
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            executable = path.is_dir() or (path.parent.name in {"bin", "DEBIAN"} and os.access(path, os.X_OK))
            path.chmod(0o755 if executable else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def filled(path: Path, values: Mapping[str, str]) -> str:
    """A file's text with `@NAME@` replaced."""
    return re.sub(r"@([A-Z_]+)@", lambda found: values[found[1]], path.read_text())


def write_gzip(path: Path, text: str) -> None:
    """Compressed as policy wants it, without name and time."""
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def run(*command: str, **environment: str) -> None:
    """Run a command whose failure is ours."""
    subprocess.run(command, check=True, env={**os.environ, **environment})


def output(*command: str, cwd: Path | None = None) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2], Path(sys.argv[3]).absolute())
