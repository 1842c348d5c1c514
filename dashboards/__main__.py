"""`python -m dashboards [DIRECTORY]` writes the dashboards and the alert rules, here unless told otherwise."""

from __future__ import annotations

import sys
from pathlib import Path

from dashboards import written

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, text in written.files().items():
        (folder / name).write_text(text)
