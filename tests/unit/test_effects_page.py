"""The page and the manual on edits say of every key of the schema what editing it does."""

from __future__ import annotations

from pathlib import Path

from agent.core.edits.effects import EFFECTS, PLUGGING
from agent.unitfile import schema
from docs import effects, manual

SHIPPED = Path(__file__).parents[2] / "docs" / "edits.md"
OF_TABLES: dict[str, type[schema.Table]] = {
    "bridge": schema.BridgeTable,
    "host-vlan": schema.HostVlanTable,
    "vlan": schema.VlanTable,
    "vm": schema.VmTable,
    "disk": schema.DiskTable,
    "nic": schema.NicTable,
    "serial": schema.SerialTable,
}


def test_the_shipped_page_is_what_the_table_says() -> None:
    assert SHIPPED.read_text() == effects.page(), "python -m docs.effects > docs/edits.md"


def test_every_key_is_on_the_page_and_in_the_manual_under_its_table() -> None:
    page, unit_page = effects.page(), manual.pages()["vmhost.unit.5"].replace("\\-", "-")
    told = unit_page.partition(".SH EDITS OF A RUNNING GUEST")[2].partition(".SH EXAMPLES")[0]
    assert effects.TABLES.keys() == EFFECTS.keys()
    assert OF_TABLES.keys() == EFFECTS.keys() - {"cdrom"}
    for table, name in effects.TABLES.items():
        rows = page.partition(f"## `[{name}]`")[2].partition("\n## ")[0]
        entries = told.partition(f".SS [{name}]\n")[2].partition(".SS ")[0]
        for key in schema.keys_of(OF_TABLES[table]) if table in OF_TABLES else EFFECTS[table]:
            if key not in PLUGGING:
                effect = EFFECTS[table][key].effect
                assert f"| `{key}` | {effect} | " in rows, (name, key)
                assert f"\\fB{key}\\fR ({effect})" in entries, (name, key)
        assert PLUGGING.get(table, "") in rows
        assert PLUGGING.get(table, "") in entries
