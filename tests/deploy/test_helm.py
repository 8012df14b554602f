"""The Helm chart: rendered by Helm itself, and validated against the schemas of three Kubernetes versions."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import yaml

import captioner
from captioner import cli, wire
from captioner.serving import metrics
from captioner.serving.settings import VARIABLE, Settings
from tests.support.deploy_tools import CHART, NAMESPACE, RELEASE, Manifest, one, refusal, render, run
from tests.support.served import ROOT

VERSIONS = ("1.28.0", "1.33.0", "1.37.0")
CUSTOM_RESOURCES = {"ScaledObject", "ServiceMonitor"}  # of KEDA and of the Prometheus operator
NO_GPU = {"gpu": {"required": False}, "resources": {"limits": {"nvidia.com/gpu": None}}}
INGRESS = {"enabled": True, "hosts": ["captions.example.org"], "className": "nginx"}
EVERYTHING: Manifest = {
    "imagePullSecrets": [{"name": "registry"}],
    "image": {"repository": "registry.example.org/captioner-server", "digest": "sha256:" + "0" * 64},
    "model": {"name": "owner/model", "revision": "main", "tokenSecret": "hub"},
    "modelRepository": {"type": "pvc"},
    "settings": {"CAPTIONER_SLOTS": 32, "CAPTIONER_PRECISION": "bf16"},
    "adminKeySecret": "admin",
    "extraArgs": ["--log-verbose=1"],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "nodeSelector": {"gpu": "h200"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "runtimeClassName": "nvidia",
    "priorityClassName": "high",
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "autoscaling": {"enabled": True, "prometheusAddress": "http://prometheus:9090", "triggerAuthentication": "auth"},
    "serviceMonitor": {"enabled": True, "pageCredentials": {"secret": "page", "key": "metrics"}},
    "networkPolicy": {
        "enabled": True,
        "clients": [{"podSelector": {"matchLabels": {"app": "batch"}}}],
        "metrics": [{"namespaceSelector": {}}],
    },
    "page": {"authSecret": "page", "ingress": INGRESS | {"tls": [{"secretName": "tls", "hosts": INGRESS["hosts"]}]}},
}
CASES: dict[str, Manifest] = {
    "default": {},
    "everything": EVERYTHING,
    "cpu": NO_GPU | {"page": {"enabled": False}, "balancer": {"enabled": False}},
    "s3": {
        "modelRepository": {
            "type": "s3",
            "s3": {
                "uri": "s3://models/captioner",
                "endpointUrl": "http://minio:9000",
                "region": "eu-west-1",
                "credentialsSecret": "bucket",
            },
        },
    },
    "claim": {"modelRepository": {"type": "pvc", "pvc": {"existingClaim": "models", "readOnly": True}}},
}


@pytest.fixture(params=CASES, ids=str)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(CASES[request.param])


def pods(manifests: list[Manifest]) -> list[Manifest]:
    """The specifications of all pods."""
    templates = [each["spec"]["template"]["spec"] for each in manifests if each["kind"] == "Deployment"]
    return templates + [each["spec"] for each in manifests if each["kind"] == "Pod"]


def containers(pod: Manifest) -> list[Manifest]:
    found: list[Manifest] = pod.get("initContainers", []) + pod["containers"]
    return found


def server(manifests: list[Manifest]) -> tuple[Manifest, Manifest]:
    """The server's pod and its container."""
    pod = one(manifests, "Deployment", "server")["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def test_helm_finds_no_fault() -> None:
    done = run("helm", "lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_in(version: str, manifests: list[Manifest]) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="in the extra `dev`: kubernetes-validate")
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM_RESOURCES:
            kubernetes.validate(manifest, version, strict=True)


def test_the_validator_refuses_an_unknown_key() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="in the extra `dev`: kubernetes-validate")
    deployment = copy.deepcopy(one(render(), "Deployment", "server"))
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(deployment, VERSIONS[-1], strict=True)


def test_the_chart_names_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == captioner.__version__


@pytest.mark.parametrize("drain", [{}, {"preStopSeconds": 20, "exitTimeoutSeconds": 300, "marginSeconds": 5}], ids=str)
def test_a_server_has_time_to_drain(drain: dict[str, int]) -> None:
    manifests = render({"drain": drain} if drain else None)
    pod, container = server(manifests)
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    exit_timeout = int(variables(container)["CAPTIONER_DRAIN_SECONDS"])
    assert "CAPTIONER_DRAIN_SECONDS" in (ROOT / "deploy" / "serve.sh").read_text(), "Triton's exit timeout"
    assert pod["terminationGracePeriodSeconds"] >= wait + exit_timeout + 5
    if drain:
        assert (wait, exit_timeout) == (20, 300)
    balancer = one(manifests, "Deployment", "balancer")["spec"]["template"]["spec"]
    slept = int(balancer["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1].split()[-1])
    assert balancer["terminationGracePeriodSeconds"] >= slept + 5 and slept >= exit_timeout
    page = one(manifests, "Deployment", "page")["spec"]["template"]["spec"]
    seconds = int(argument(page["containers"][0], "--drain-seconds"))
    assert page["terminationGracePeriodSeconds"] > 5 + seconds + 5


def test_a_rolling_update_takes_no_server_away_before_another_is_ready() -> None:
    for component in ("server", "balancer", "page"):
        strategy = one(render(), "Deployment", component)["spec"]["strategy"]
        assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def test_probes_write_a_caption_except_for_readiness(manifests: list[Manifest]) -> None:
    _, container = server(manifests)
    for name in ("startupProbe", "livenessProbe"):
        command, limit = container[name]["exec"]["command"], container[name]["timeoutSeconds"]
        assert command[:2] == ["captioner", "probe"]
        parsed = cli.parser().parse_args(command[1:])
        assert parsed.server == f"127.0.0.1:{wire.GRPC_PORT}" and parsed.timeout_s < limit
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 1800
    readiness = container["readinessProbe"]["httpGet"]
    assert readiness == {"path": f"/v2/models/{wire.CAPTIONER}/ready", "port": "http"}
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": wire.HTTP_PORT, "grpc": wire.GRPC_PORT, "metrics": wire.METRICS_PORT}


def test_every_container_is_confined(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] == 1000
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_every_container_of_a_deployment_has_a_memory_limit(manifests: list[Manifest]) -> None:
    for deployment in (each for each in manifests if each["kind"] == "Deployment"):
        assert all(
            "memory" in each["resources"]["limits"] for each in containers(deployment["spec"]["template"]["spec"])
        )


def test_shared_memory_is_in_memory_and_every_written_folder_is_a_volume(manifests: list[Manifest]) -> None:
    pod, container = server(manifests)
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    assert {"/models", "/huggingface", "/tmp", "/dev/shm"} <= set(mounts)
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert set(mounts.values()) <= set(volumes)
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}


def test_the_model_comes_from_a_claim_a_bucket_or_the_hub() -> None:
    pod, container = server(render(EVERYTHING))
    names = variables(container)
    assert (names["CAPTIONER_MODEL"], names["CAPTIONER_REVISION"], names["CAPTIONER_SLOTS"]) == (
        "owner/model",
        "main",
        "32",
    )
    claims = [each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if "persistentVolumeClaim" in each]
    created = one(render(EVERYTHING), "PersistentVolumeClaim", "server")
    assert claims == [created["metadata"]["name"]] and created["spec"]["accessModes"] == ["ReadWriteMany"]
    pod, _ = server(render(CASES["claim"]))
    assert {"claimName": "models"} in [each.get("persistentVolumeClaim") for each in pod["volumes"]]
    pod, container = server(render(CASES["s3"]))
    (copy_of_bucket,) = pod["initContainers"]
    assert copy_of_bucket["args"][:2] == ["s3", "sync"]
    assert copy_of_bucket["args"][-2:] == ["s3://models/captioner", "/models"]
    assert "--exclude=.admin-key" in copy_of_bucket["args"], "the key of another machine"
    assert {each["mountPath"] for each in copy_of_bucket["volumeMounts"]} >= {"/models", "/tmp"}


def test_every_variable_of_the_server_is_one_that_it_reads() -> None:
    _, container = server(render(EVERYTHING))
    known = {VARIABLE + name.upper() for name in Settings.__dataclass_fields__}
    read = set(re.findall(r"CAPTIONER_[A-Z_]+", (ROOT / "deploy" / "serve.sh").read_text()))
    ours = {name for name in variables(container) if name.startswith("CAPTIONER_")}
    assert ours <= known | read, ours - known - read


def test_a_gpu_is_asked_for_and_required_together() -> None:
    _, container = server(render())
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert variables(container)["CAPTIONER_REQUIRE_GPU"] == "1"
    _, container = server(render(CASES["cpu"]))
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert variables(container)["CAPTIONER_REQUIRE_GPU"] == "0"


def test_the_balancer_reaches_every_server_and_the_page_reaches_the_balancer() -> None:
    manifests = render()
    services = {each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == "Service"}
    config = yaml.safe_load(one(manifests, "ConfigMap", "balancer")["data"]["envoy.yaml"])
    names = set(re.findall(r"'address': '([a-z-]+)', 'port_value'", str(config["static_resources"]["clusters"])))
    assert len(names) == 1
    assert services[names.pop()]["clusterIP"] == "None", "the name must resolve to every server, not to one address"
    page = one(manifests, "Deployment", "page")["spec"]["template"]["spec"]["containers"][0]
    name, _, port = argument(page, "--server").partition(":")
    (balancer,) = one(manifests, "Deployment", "balancer")["spec"]["template"]["spec"]["containers"]
    assert int(port) in [each["port"] for each in services[name]["ports"]]
    assert services[name]["selector"]["app.kubernetes.io/component"] == "balancer"
    listening = [each["address"]["socket_address"]["port_value"] for each in config["static_resources"]["listeners"]]
    assert listening == [each["containerPort"] for each in balancer["ports"]]


def test_without_the_balancer_the_service_selects_the_servers() -> None:
    manifests = render(CASES["cpu"])
    services = {each["metadata"]["name"]: each["spec"] for each in manifests if each["kind"] == "Service"}
    selectors = {name: spec["selector"]["app.kubernetes.io/component"] for name, spec in services.items()}
    assert set(selectors.values()) == {"server"} and len(selectors) == 2


def test_every_port_and_selector_of_a_service_exists(manifests: list[Manifest]) -> None:
    templates = [each["spec"]["template"] for each in manifests if each["kind"] == "Deployment"]
    for service in (each for each in manifests if each["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        (selected,) = (each for each in templates if selector <= each["metadata"]["labels"].items())
        named = {port["name"] for each in selected["spec"]["containers"] for port in each["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named


def test_every_option_of_the_page_exists() -> None:
    command = [sys.executable, "-m", "frontend", "--help"]
    help_text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout
    for values in ({}, EVERYTHING):
        page = one(render(values), "Deployment", "page")["spec"]["template"]["spec"]["containers"][0]
        for each in page["args"]:
            assert f"{each.partition('=')[0]} " in help_text.replace("\n", " ")
        assert ("--insecure" in page["args"]) == ("envFrom" not in page), "keys, or access for everyone"


def test_keda_scales_on_our_gauges_and_never_to_zero() -> None:
    scaled = one(render(EVERYTHING), "ScaledObject", "server")["spec"]
    deployment = one(render(EVERYTHING), "Deployment", "server")
    assert "replicas" not in deployment["spec"], "Helm would undo what KEDA did"
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaled["minReplicaCount"] >= 1
    (trigger,) = scaled["triggers"]
    assert trigger["metricType"] == "AverageValue", "KEDA's fallback needs it"
    query = trigger["metadata"]["query"]
    gauges = {each.name for each in metrics.ALL if each.kind == "GAUGE"}
    assert set(re.findall(r"captioner_\w+(?=\{)", query)) == gauges
    assert f'namespace="{NAMESPACE}",service="{RELEASE}-captioner-servers"' in query
    assert float(trigger["metadata"]["threshold"]) < 1, "a replica is added before every slot is taken"


def test_the_monitors_select_ports_that_exist() -> None:
    manifests = render(EVERYTHING)
    for component, port in (("server", "metrics"), ("page", "http")):
        monitor = one(manifests, "ServiceMonitor", component)["spec"]
        wanted = monitor["selector"]["matchLabels"].items()
        services = [each for each in manifests if each["kind"] == "Service"]
        selected = [each for each in services if wanted <= each["metadata"]["labels"].items()]
        ports = [port["name"] for service in selected for port in service["spec"]["ports"]]
        assert [endpoint["port"] for endpoint in monitor["endpoints"]] == [port] and ports.count(port) == 1


def test_only_the_balancer_reaches_tritons_ports_under_the_network_policy() -> None:
    policy = one(render(EVERYTHING), "NetworkPolicy", "server")["spec"]
    first, second = policy["ingress"]
    (peer,) = first["from"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "balancer"
    assert first["ports"] == [{"port": "http"}, {"port": "grpc"}] and second["ports"] == [{"port": "metrics"}]
    balancer = one(render(EVERYTHING), "NetworkPolicy", "balancer")["spec"]
    assert {"podSelector": {"matchLabels": {"app": "batch"}}} in balancer["ingress"][0]["from"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"replicas": 3}, "'replicas' not allowed"),
        ({"modelRepository": {"type": "gcs"}}, "modelRepository/type"),
        ({"modelRepository": {"type": "s3"}}, "modelRepository.s3.uri is empty"),
        (
            {"replicaCount": 2, "modelRepository": {"type": "pvc", "pvc": {"accessModes": ["ReadWriteOnce"]}}},
            "must include ReadWriteMany",
        ),
        ({"autoscaling": {"enabled": True}}, "autoscaling.prometheusAddress is empty"),
        ({"autoscaling": {"minReplicas": 0}}, "autoscaling/minReplicas"),
        ({"page": {"ingress": INGRESS}}, "set page.authSecret, or page.insecure=true"),
        ({"gpu": {"required": False}}, "gpu.required is false"),
        ({"resources": {"limits": {"nvidia.com/gpu": None}}}, "set gpu.required=false"),
        ({"image": {"digest": "latest"}}, "image/digest"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_that_cannot_work_are_refused_with_a_sentence(values: Manifest, sentence: str) -> None:
    assert sentence in refusal(values)


@cache
def schema() -> Any:
    return yaml.safe_load((CHART / "values.schema.json").read_text())


def test_the_schema_names_every_key_of_the_values() -> None:
    def check(values: Any, described: Any, path: str) -> None:
        for key, value in values.items():
            assert key in described["properties"], f"{path}.{key}"
            if isinstance(value, dict) and described["properties"][key].get("additionalProperties") is False:
                check(value, described["properties"][key], f"{path}.{key}")

    check(yaml.safe_load((CHART / "values.yaml").read_text()), schema(), "values")


def variables(container: Manifest) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


def argument(container: Manifest, name: str) -> str:
    (value,) = (each.partition("=")[2] for each in container["args"] if each.startswith(f"{name}="))
    return str(value)
