"""The KServe runtime and service: valid pods, times that add up, the same container as in the Helm chart."""

from __future__ import annotations

import re

import pytest
import yaml

from captioner import wire
from captioner.serving import metrics
from tests.deploy.test_helm import VERSIONS, server, variables
from tests.support.deploy_tools import Manifest, render
from tests.support.served import ROOT

FOLDER = ROOT / "deploy" / "kserve"
RUNTIME: Manifest = yaml.safe_load((FOLDER / "servingruntime.yaml").read_text())["spec"]
PREDICTOR: Manifest = yaml.safe_load((FOLDER / "inferenceservice.yaml").read_text())["spec"]["predictor"]
(CONTAINER,) = RUNTIME["containers"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_runtime_describes_a_valid_pod_in(version: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="in the extra `dev`: kubernetes-validate")
    pod = {"containers": [CONTAINER], "volumes": RUNTIME["volumes"]}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "captioner"}, "spec": pod}
    kubernetes.validate(manifest, version, strict=True)


def test_the_service_asks_for_the_runtime() -> None:
    model, (accepted,) = PREDICTOR["model"], RUNTIME["supportedModelFormats"]
    assert model["modelFormat"] == {name: accepted[name] for name in ("name", "version")}
    assert model["protocolVersion"] in RUNTIME["protocolVersions"]


def test_a_server_has_time_to_drain() -> None:
    wait = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1])
    exit_timeout = int(variables(CONTAINER)["CAPTIONER_DRAIN_SECONDS"])
    assert PREDICTOR["terminationGracePeriodSeconds"] >= wait + exit_timeout + 5


def test_the_container_listens_where_triton_does_and_serves_the_mounted_repository() -> None:
    ports = {each["name"]: each["containerPort"] for each in CONTAINER["ports"]}
    assert ports == {"http1": wire.HTTP_PORT, "h2c": wire.GRPC_PORT, "metrics": wire.METRICS_PORT}
    assert RUNTIME["annotations"]["prometheus.kserve.io/port"] == str(wire.METRICS_PORT)
    assert variables(CONTAINER)["MODEL_REPOSITORY"] == "/mnt/models"


def test_probes_and_confinement_are_those_of_the_chart() -> None:
    pod, container = server(render())
    for name in ("livenessProbe", "lifecycle"):
        assert CONTAINER[name] == container[name]
    assert CONTAINER["startupProbe"]["exec"] == container["startupProbe"]["exec"]
    profile = {"seccompProfile": pod["securityContext"]["seccompProfile"]}
    user = {name: pod["securityContext"][name] for name in ("runAsNonRoot", "runAsUser")}
    assert CONTAINER["securityContext"] == container["securityContext"] | profile | user


def test_keda_scales_on_our_gauges() -> None:
    (metric,) = PREDICTOR["autoScaling"]["metrics"]
    query = metric["external"]["metric"]["query"]
    assert set(re.findall(r"captioner_\w+(?=\{)", query)) == {each.name for each in metrics.ALL if each.kind == "GAUGE"}
    assert PREDICTOR["minReplicas"] >= 1, "the gauges of no server cannot wake one"
