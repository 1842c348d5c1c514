"""The one virtual machine of a test session: booted when first asked for, switched off with the session."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path

from tests.lab.image import lab_image
from tests.lab.payload import ROOT, write_payload
from tests.lab.virtual import VirtualLab


class Booted:
    """Boots it at the first `lab()`; what went wrong then is told to all who ask later."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._lab: VirtualLab | None = None
        self._problem: Exception | None = None

    def lab(self) -> VirtualLab:
        """The machine, with the checkout mounted where it is outside; RuntimeError if it does not boot."""
        if self._problem is not None:
            raise RuntimeError(f"the virtual lab did not boot: {self._problem}") from self._problem
        if self._lab is None:
            try:
                self._lab = self._boot()
            except Exception as error:
                self._problem = error
                self.end()
                raise
        return self._lab

    def _boot(self) -> VirtualLab:
        image = lab_image()
        self._folder = Path(tempfile.mkdtemp(prefix="vmhost-lab-", dir="/var/tmp"))
        packages = sorted((ROOT / "build").glob("vmhost_*.deb"))
        machine = VirtualLab(image, self._folder, (write_payload(self._folder, *packages),))
        self._lab = machine  # for `end`, should the rest fail
        machine.boot()
        machine.wait_for_systemd()
        root = shlex.quote(str(ROOT))
        machine.output(f"mkdir -p {root} && mount /dev/vdb {root}")
        return machine

    def end(self) -> None:
        """Switch it off and remove its files."""
        if self._lab is not None:
            self._lab.kill()
            self._lab = None
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None
