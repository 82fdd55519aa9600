"""Compose, Dockerfile and Kubernetes manifests, as far as they can be judged without running them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
KUBERNETES = ROOT / "deploy" / "kubernetes"
DOCKERFILE = (COMPOSE / "Dockerfile").read_text()
SWITCHES = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
PINNED = re.compile(
    r"[\w./-]+:\d+(\.\d+)+[\w.-]*|[\w./-]+:v\d+\.\d+\.\d+|[\w./-]+@sha256:[0-9a-f]{64}"
)
INSTALLS = re.compile(
    r"\b(pip3?|apt|apt-get|apk|conda|uv) +(install|add|sync)|curl |wget |git clone"
)
TEXTS = sorted(
    path
    for folder in ("compose", "kubernetes", "systemd", "nginx", "prometheus", "grafana")
    for path in (ROOT / "deploy" / folder).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)

yaml.SafeLoader.add_constructor("!reset", lambda loader, node: None)


def compose(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPOSE / f"compose.{name}.yaml").read_text())
    return found


def services() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name in ("site", "site-metrics", "hub"):
        for service, about in compose(name)["services"].items():
            yield name, service, about


def manifests(place: str) -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for file in sorted((KUBERNETES / place).glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            if document["kind"] != "Kustomization":
                found[document["kind"], document["metadata"]["name"]] = document
    return found


def pod(place: str, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = manifests(place)["StatefulSet", name]["spec"]["template"]["spec"]
    return spec


def containers(place: str, name: str) -> list[dict[str, Any]]:
    spec = pod(place, name)
    return [*spec["initContainers"], *spec["containers"]]


PODS = (("site", "agent"), ("site", "node"), ("hub", "hub"))


@pytest.mark.parametrize("file", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is_for(file: Path) -> None:
    """Somebody else's operator opens one of them, not this repository. (JSON has no comments.)"""
    if file.suffix == ".json" or file.stat().st_size == 0:
        return
    text = file.read_text()
    assert text.startswith(("#", '"""')), text[:40]
    assert "\t" not in text
    assert text.endswith("\n")
    assert max(map(len, text.splitlines())) < 240


@pytest.mark.parametrize(("name", "service", "about"), list(services()))
def test_files_that_compose_mounts_or_builds_from_exist(
    name: str, service: str, about: dict[str, Any]
) -> None:
    """Docker makes an empty folder of a file that is not there, and nginx then does not start."""
    for volume in about.get("volumes", ()):
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (COMPOSE / source).is_file(), volume
        elif not source.startswith("$"):
            assert source in compose(name)["volumes"]
    if "build" in about:
        build = about["build"]
        assert (COMPOSE / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        assert f" AS {build['target']}\n" in DOCKERFILE


@pytest.mark.parametrize(("name", "service", "about"), list(services()))
def test_every_container_is_closed(name: str, service: str, about: dict[str, Any]) -> None:
    """No privileges, nothing to write to but what is named, started again for ever."""
    if service == "agent" and name == "site-metrics":
        assert set(about) == {
            "network_mode",
            "networks",
            "command",
        }  # the rest is compose.site.yaml's
        return
    assert about["cap_drop"] == ["ALL"]
    assert about["read_only"] is True
    assert about["security_opt"] == ["no-new-privileges:true"]
    assert about["restart"] == "always"
    assert int(about["user"].split(":")[0]) > 0
    assert not {"privileged", "cap_add", "pid", "ipc"} & set(about)
    assert not any("docker.sock" in volume for volume in about.get("volumes", ()))


def test_images_are_pinned() -> None:
    """What runs beside the data next year is what was looked at this year."""
    images = [about["image"] for _, _, about in services() if "image" in about]
    images += re.findall(r"^ARG PYTHON_IMAGE=(\S+)", DOCKERFILE, re.MULTILINE)
    for place, name in PODS:
        kustomized = yaml.safe_load((KUBERNETES / place / "kustomization.yaml").read_text())
        tags = {image["name"]: image["newTag"] for image in kustomized["images"]}
        for container in containers(place, name):
            image = container["image"]
            images.append(image if ":" in image else f"{image}:{tags[image]}")
    assert len(images) > 10
    assert [image for image in images if not PINNED.fullmatch(image)] == []


def test_our_own_images_have_the_version_of_the_package() -> None:
    """A site reads the version off its images."""
    text = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    assert version
    found = set()
    for file in (*COMPOSE.glob("*.yaml"), *KUBERNETES.rglob("kustomization.yaml")):
        found |= set(re.findall(r"callosum-\w+(?::|, newTag: )([\d.]+)", file.read_text()))
    assert found == {version.group(1)}


def test_agent_and_courier_are_different_users_who_share_a_socket() -> None:
    """Whoever takes the courier over has not taken the agent's files over."""
    agent, node = (compose("site")["services"][name] for name in ("agent", "node"))
    assert agent["user"].split(":")[0] != node["user"].split(":")[0]
    assert agent["user"].split(":")[1] == node["user"].split(":")[1]
    assert "socket:/run/callosum" in agent["volumes"]
    assert "socket:/run/callosum:ro" in node["volumes"]
    user, group = agent["user"].split(":")
    made = compose("site")["volumes"]["socket"]["driver_opts"]["o"]
    assert {f"uid={user}", f"gid={group}", "mode=2750"} <= set(made.split(","))
    for image, about in (("agent", agent), ("node", node)):
        assert f"USER {about['user']}" in stage(image)
    users = {name: pod("site", name)["securityContext"] for name in ("agent", "node")}
    assert users["agent"]["runAsUser"] != users["node"]["runAsUser"]
    assert users["agent"]["fsGroup"] != users["node"]["fsGroup"]


def test_the_courier_has_no_data_no_gpu_and_nothing_of_the_agents() -> None:
    """It runs inside Flower, which runs what the network sends."""
    agent, node = (compose("site")["services"][name] for name in ("agent", "node"))
    targets = [
        volume.split(":")[-2 if volume.endswith(":ro") else -1] for volume in node["volumes"]
    ]
    assert sorted(targets) == ["/kit/ca.crt", "/kit/courier", "/kit/kit.toml", "/run/callosum"]
    assert not any("CALLOSUM_DATA" in volume for volume in node["volumes"])
    assert not {"devices", "gpus", "deploy", "runtime"} & set(node)
    assert any("/data:ro" in volume for volume in agent["volumes"])
    assert not any("courier:" in volume for volume in agent["volumes"])
    there = pod("site", "node")
    assert not any("persistentVolumeClaim" in volume for volume in there["volumes"])
    assert "nvidia" not in str(there)
    secrets = {
        name: {
            item["path"]
            for v in pod("site", name)["volumes"]
            if v["name"] == "secret"
            for item in v["secret"]["items"]
        }
        for name in ("agent", "node")
    }
    assert not any(path.startswith("agent/") for path in secrets["node"])
    assert not any(path.startswith("courier/") for path in secrets["agent"])


def test_the_agent_has_no_way_out() -> None:
    """What leaves goes through the courier, past the egress gate."""
    assert compose("site")["services"]["agent"]["network_mode"] == "none"
    watched = compose("site-metrics")
    assert watched["services"]["agent"]["networks"] == ["metrics"]
    assert watched["networks"]["metrics"] == {"internal": True}
    policy = manifests("site")["NetworkPolicy", "agent"]["spec"]
    assert policy["egress"] == []
    assert "Egress" in policy["policyTypes"]
    data = [v for v in pod("site", "agent")["volumes"] if v["name"] == "data"]
    assert data[0]["persistentVolumeClaim"]["readOnly"] is True


def test_the_courier_reaches_agent_hub_and_names_alone() -> None:
    """Three rules and no fourth, and everything else is denied by one of its own."""
    found = manifests("site")
    assert found["NetworkPolicy", "nothing"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    policy = found["NetworkPolicy", "node"]["spec"]
    assert policy["ingress"] == []
    agent, hub, names = policy["egress"]
    assert agent["to"] == [{"podSelector": {"matchLabels": {"app": "agent"}}}]
    assert hub["to"] == [{"ipBlock": {"cidr": "203.0.113.10/32"}}]
    assert {port["port"] for port in names["ports"]} == {53}
    (courier,) = [
        rule
        for rule in found["NetworkPolicy", "agent"]["spec"]["ingress"]
        if rule["ports"][0]["port"] == 9096
    ]
    assert courier["from"] == [{"podSelector": {"matchLabels": {"app": "node"}}}]


def test_only_nginx_is_reached_from_outside_the_hub() -> None:
    """Flower's control API has no password: it stays on a loopback."""
    hub = compose("hub")["services"]
    assert hub["address"]["ports"] == ["${CALLOSUM_PORT:-9443}:9443"]
    assert hub["hub"]["network_mode"] == hub["nginx"]["network_mode"] == "service:address"
    assert all("ports" not in hub[name] for name in ("hub", "nginx", "prometheus"))
    assert all(port.startswith("127.0.0.1:") for port in hub["grafana"]["ports"])
    (port,) = manifests("hub")["Service", "hub"]["spec"]["ports"]
    assert port["targetPort"] == "fleet"
    ports = {p["containerPort"] for c in containers("hub", "hub") for p in c.get("ports", ())}
    policy = manifests("hub")["NetworkPolicy", "hub"]["spec"]
    assert policy["egress"] == []
    assert {rule["ports"][0]["port"] for rule in policy["ingress"]} == ports == {9443, 9465}


def test_nginx_is_given_every_value_and_no_more_of_the_kit_than_it_needs() -> None:
    """An unfilled value keeps nginx from starting; the coordinator's key is not nginx's business."""
    template = (ROOT / "deploy/nginx/callosum-hub.conf").read_text()
    wanted = set(re.findall(r"\$\{(CALLOSUM_\w+)\}", template))
    nginx = compose("hub")["services"]["nginx"]
    assert wanted == {name for name in nginx["environment"] if name.startswith("CALLOSUM_")}
    kit = [volume.split(":")[-2] for volume in nginx["volumes"] if volume.startswith("$")]
    assert sorted(kit) == ["/kit/ca.crt", "/kit/server.crt", "/kit/server.key"]
    (there,) = [c for c in containers("hub", "hub") if c["name"] == "nginx"]
    assert wanted == {e["name"] for e in there["env"] if e["name"].startswith("CALLOSUM_")}
    (door,) = [volume for volume in pod("hub", "hub")["volumes"] if volume["name"] == "door"]
    assert {item["key"] for item in door["secret"]["items"]} == {
        "ca.crt",
        "server.crt",
        "server.key",
    }


def test_nothing_calls_home() -> None:
    """Flower counts its users and looks for newer versions; Grafana does both and fetches news."""
    for name, service in (("site", "agent"), ("site", "node"), ("hub", "hub")):
        assert SWITCHES.items() <= compose(name)["services"][service]["environment"].items()
    for name, value in SWITCHES.items():
        assert f"{name}={value}" in DOCKERFILE
    for place, pod_name in PODS:
        for container in containers(place, pod_name):
            if container["name"] in ("agent", "node", "hub"):
                assert SWITCHES.items() <= {e["name"]: e["value"] for e in container["env"]}.items()
    for _, service, about in services():
        if service == "grafana":
            off = about["environment"]
            assert off["GF_ANALYTICS_REPORTING_ENABLED"] == "false"
            assert off["GF_ANALYTICS_CHECK_FOR_UPDATES"] == "false"


def test_nothing_is_installed_at_run_time() -> None:
    """Only the Dockerfile installs, while it is built, and at the versions of constraints.txt."""
    for file in TEXTS:
        commands = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        if file.name != "Dockerfile":
            assert not INSTALLS.search("\n".join(commands)), file
    for line in DOCKERFILE.splitlines():
        if "pip install" in line:
            assert "--constraint constraints.txt" in line or "--no-deps" in line
    assert "pip" not in stage("agent") + stage("node") + stage("hub") + stage("system")


def stage(name: str) -> str:
    """The instructions of one stage of the Dockerfile."""
    found = re.search(
        rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL
    )
    assert found, name
    return found.group(1)


def test_the_build_copies_nothing_that_is_not_there_or_is_ignored() -> None:
    """COPY of a missing file ends the build; a kit beside the source must not end in an image."""
    allowed = (COMPOSE / "Dockerfile.dockerignore").read_text().splitlines()
    assert allowed[1] == "*"
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source.split('/')[0]}" in allowed


def test_the_node_imports_nothing_that_its_image_lacks() -> None:
    """The node's image is small and has no torch: its list must hold all that is imported."""
    code = (
        "import sys, client.cli, client.courier.node, client.courier.executor, flwr.supernode.cli.flower_supernode\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert "torch" not in imported
    of_module = metadata.packages_distributions()
    used = {of_module[name][0].lower().replace("_", "-") for name in imported if name in of_module}
    listed = [
        line for line in (COMPOSE / "node-requirements.txt").read_text().split("\n")[1:] if line
    ]
    assert used - closure(listed) - {"callosum", "setuptools", "pip"} == set()


def closure(names: list[str]) -> set[str]:
    """The distributions that installing `names` brings, themselves included."""
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *wanted.extras):
            name = wanted.name.lower().replace("_", "-")
            if (name, extra) in found:
                continue
            found.add((name, extra))
            needs = [Requirement(need) for need in metadata.requires(name) or ()]
            waiting += [
                need for need in needs if not need.marker or need.marker.evaluate({"extra": extra})
            ]
    return {name for name, _ in found}


@pytest.mark.parametrize(("place", "name"), PODS)
def test_every_pod_keeps_the_restricted_standard(place: str, name: str) -> None:
    """The namespace enforces it; a pod that breaks it is never started."""
    spec = pod(place, name)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert not any("hostPath" in volume for volume in spec["volumes"])
    declared = {v["name"] for v in spec["volumes"]} | {
        claim["metadata"]["name"]
        for claim in manifests(place)["StatefulSet", name]["spec"].get("volumeClaimTemplates", ())
    }
    for container in containers(place, name):
        closed = container["securityContext"]
        assert closed["allowPrivilegeEscalation"] is False
        assert closed["readOnlyRootFilesystem"] is True
        assert closed["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= declared
    labels = manifests(place)["Namespace", f"callosum-{place}"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("place", ["site", "hub"])
def test_kubectl_puts_the_manifests_together(place: str) -> None:
    """The client's own reading of them; what a cluster says of them was not tried."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        ["kubectl", "kustomize", KUBERNETES / place], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    documents = list(yaml.safe_load_all(done.stdout))
    assert len(documents) == len(manifests(place))
    assert {document["kind"] for document in documents} == {kind for kind, _ in manifests(place)}


def commands() -> Iterator[tuple[str, list[str]]]:
    """What containers are started with, as a program and its arguments."""
    for _, service, about in services():
        if service in ("agent", "node", "hub") and "command" in about:
            yield ("callosum" if service == "hub" else "callosum-site"), about["command"]
    for place, name in PODS:
        for container in containers(place, name):
            if "args" in container:
                yield ("callosum" if place == "hub" else "callosum-site"), container["args"]


def test_containers_are_started_with_options_that_exist() -> None:
    """A renamed option would show when the container starts, at a hospital."""
    asked: dict[tuple[str, str], set[str]] = {}
    for program, (command, *options) in commands():
        flags = {option for option in options if option.startswith("--")}
        asked.setdefault((program, command), set()).update(flags)
    assert len(asked) == 3
    for (program, command), options in asked.items():
        script = Path(sys.executable).with_name(program)
        helped = subprocess.run(
            [script, command, "--help"],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        )
        assert helped.returncode == 0, helped.stderr
        assert options <= set(re.findall(r"--[\w-]+", helped.stdout))


def healthy(address: str) -> int:
    command = [sys.executable, COMPOSE / "healthy.py", address]
    return subprocess.run(command, capture_output=True).returncode


def test_the_health_check_tells_a_serving_agent_from_a_silent_one(tmp_path: Path) -> None:
    """Over the standard health service on a real socket; one that shuts down is not healthy."""
    address = f"unix:{tmp_path}/agent.sock"
    assert healthy(address) != 0
    server = grpc.server(ThreadPoolExecutor(2))
    service = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    server.add_insecure_port(address)
    server.start()
    assert healthy(address) == 0
    service.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert healthy(address) != 0
    server.stop(0).wait()
