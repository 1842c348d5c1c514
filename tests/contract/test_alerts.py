"""The alert rules before a real promtool: each fires when it must, keeps still when it must, and has its runbook.

`alerts/NAME.yml` has one case of either kind, which say in their names when that is.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from dashboards.alerts import ALERTS
from dashboards.rules import Alert, Bound, to_yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "dashboards" / "alerts.yml"
CASES = Path(__file__).parent / "alerts"
ALWAYS = "> -1e9"

every_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *words], capture_output=True, text=True, check=False, timeout=30)


def failing_cases(alert: Alert, rules: str, folder: Path) -> set[str]:
    """Which cases of an alert do not hold with these rules, by the first word of their names."""
    (folder / "rules.yml").write_text(rules)
    cases = folder / "cases.yml"
    cases.write_text(case_text(alert).replace(str(Path("../../../dashboards/alerts.yml")), "rules.yml"))
    done = promtool("test", "rules", str(cases))
    assert "SUCCESS" in done.stdout or "FAILED:" in done.stdout + done.stderr, done
    return set(re.findall(r"^ +name: (fires|does not fire) ", done.stdout + done.stderr, re.MULTILINE))


def case_text(alert: Alert) -> str:
    return (CASES / f"{alert.name}.yml").read_text()


def test_the_rule_file_is_one_to_prometheus() -> None:
    done = promtool("check", "rules", str(RULES))
    assert (done.returncode, f"{len(ALERTS)} rules found" in done.stdout) == (0, True), done


def test_the_configurations_of_the_page_are_ones_to_prometheus(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    found = [text for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "scrape_configs:" in text]
    assert len(found) == 2
    (drop,) = (text for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "metric_relabel_configs:" in text)
    for text in (*found, found[0] + drop):
        (tmp_path / "prometheus.yml").write_text(text)
        done = promtool("check", "config", "--syntax-only", str(tmp_path / "prometheus.yml"))
        assert done.returncode == 0, done.stdout + done.stderr


@every_alert
def test_each_alert_fires_and_keeps_still(alert: Alert) -> None:
    done = promtool("test", "rules", str(CASES / f"{alert.name}.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


@every_alert
def test_each_alert_has_a_case_of_either_kind_and_nothing_else(alert: Alert) -> None:
    cases = re.split(r"^  - name: ", case_text(alert), flags=re.MULTILINE)[1:]
    assert [re.match(r"fires when|does not fire when", case) is not None for case in cases] == [True, True]
    fires, still = cases
    assert (fires.startswith("fires"), "exp_alerts: []" in fires, "exp_labels:" in fires) == (True, False, True)
    assert (still.startswith("does not"), "exp_alerts: []" in still, "exp_labels:" in still) == (True, True, False)
    assert set(re.findall(r"alertname: (\w+)", case_text(alert))) == {alert.name}


@every_alert
def test_the_cases_notice_a_threshold_that_is_not_there(alert: Alert, tmp_path: Path) -> None:
    """Without its threshold the alert fires where it must not; with one that nothing reaches it never fires."""
    assert failing_cases(alert, to_yaml([alert]), tmp_path) == set()
    where = None if alert.where is None else replace(alert.where, threshold=ALWAYS)
    always = replace(alert, bound=Bound(alert.bound.expr, ALWAYS), where=where, holds="0m")
    assert "does not fire" in failing_cases(alert, to_yaml([always]), tmp_path)
    never = replace(alert, bound=Bound(alert.bound.expr, "> 1e12"))
    assert failing_cases(alert, to_yaml([never]), tmp_path) == {"fires"}


def test_there_is_no_case_of_an_alert_that_is_not_there() -> None:
    assert {path.stem for path in CASES.iterdir()} == {alert.name for alert in ALERTS}
