"""Alerts, dashboard and the table of metrics: every metric that they name is one that the code registers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from captioner.errors import CaptionerError
from captioner.serving import metrics
from captioner.wire import GRPC_PORT, METRICS_PORT, PAGE_PORT, UNARY_REQUESTS
from frontend.middleware.metrics import Metrics
from tests.support.deploy_tools import run
from tests.support.served import ROOT

FOLDER = ROOT / "deploy" / "monitoring"
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((FOLDER / "grafana" / "captioner.json").read_text())
NAME = re.compile(r"\bcaptioner_[a-z_]+\b")


def registered() -> dict[str, str]:
    """The type of each metric by the name that Prometheus shows."""
    found = {each.name: each.kind.lower() for each in metrics.ALL} | {UNARY_REQUESTS: "gauge"}
    for family in Metrics().registry.collect():
        found[family.name + ("_total" if family.type == "counter" else "")] = family.type
    return found


def base(name: str) -> str:
    """Return the metric of a histogram's series."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def expressions(node: Any) -> Iterator[str]:
    """Every query of the dashboard: panels, variables and annotations."""
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from expressions(value)
    if isinstance(node, dict):
        yield from (node[key] for key in ("expr", "definition") if isinstance(node.get(key), str))


def test_the_alerts_fire_where_they_should_and_nowhere_else() -> None:
    done = run("promtool", "test", "rules", "alerts_test.yml", cwd=FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    cases = [case for test in tested for case in test["alert_rule_test"]]
    for alert in (each["alert"] for each in ALERTS):
        fires = {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == alert}
        assert fires == {True, False}, f"{alert} is not shown both firing and silent"


def test_promtool_finds_no_fault() -> None:
    for command in (
        ["check", "rules", "--lint=all", "--lint-fatal", "alerts.yml"],
        ["check", "config", "--syntax-only"],
    ):
        done = run("promtool", *command, *(["prometheus.yml"] if command[1] == "config" else []), cwd=FOLDER)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_metrics_and_codes_that_exist(rule: dict[str, Any]) -> None:
    assert {base(name) for name in NAME.findall(rule["expr"])} <= set(registered())
    for codes in re.findall(r'code=~?"([^"]+)"', rule["expr"]):
        assert set(codes.split("|")) <= set(CaptionerError.by_code) | {CaptionerError.code}
    assert rule["labels"]["severity"] in ("warning", "critical") and rule["annotations"].keys() == {
        "summary",
        "description",
    }
    assert f"`{rule['alert']}`" in (ROOT / "docs" / "operations.md").read_text(), "operations.md says what to do"


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    named = {base(name) for text in expressions(DASHBOARD) for name in NAME.findall(text)}
    assert named == set(registered())


def test_every_query_of_the_dashboard_is_valid() -> None:
    """promtool parses a query only as a rule, so each one is made a rule."""
    queries = sorted({each for each in expressions(DASHBOARD) if not each.startswith("label_values")})
    assert len(queries) >= 20
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries)
    ]
    path = ROOT / "build" / "dashboard-queries.yml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = run("promtool", "check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_do_not_overlap_and_have_a_title_each() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert panel["title"] and not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_operations_lists_every_metric_with_its_type_and_unit() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `(captioner_[a-z_]+)` \| (\w+) \| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    assert {name: kind for name, kind, _, _ in rows} == registered()
    for name, _, unit, _ in rows:
        for suffix, wanted in (("_ms_total", "ms"), ("_seconds", "s")):
            assert (unit.strip() == wanted) == (suffix in name), name


def test_prometheus_scrapes_the_services_of_the_stack_and_the_collector_listens_where_triton_sends() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    scraped = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    jobs = {each["job_name"]: each for each in scraped}
    (server,) = jobs["captioner"]["dns_sd_configs"]
    assert server["port"] == METRICS_PORT
    for name in ("server", "server-cpu", "servers"):
        assert set(server["names"]) <= set(services[name]["networks"]["default"]["aliases"])
    assert jobs["captioner-page"]["static_configs"][0]["targets"] == [f"frontend:{PAGE_PORT}"]
    key = jobs["captioner-page"]["authorization"]["credentials_file"]
    assert f"> {key};" in services["prometheus"]["command"][0]
    assert jobs["envoy"]["dns_sd_configs"][0]["port"] == 9902 != GRPC_PORT
    collector = yaml.safe_load((FOLDER / "otel-collector.yml").read_text())
    port = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    assert f"http://otel-collector:{port}/v1/traces" in (ROOT / ".env").read_text()
    for pipeline in collector["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= set(collector[part])
