"""The files for Kubernetes, by its own schemas and by those of KEDA and the Prometheus operator."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from called import Model, made
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from serving import Echo, on_a_socket

from isoflop.cli import app
from isoflop.errors import ServeError
from isoflop.serve.app import build_app
from isoflop.serve.gateway import Gateway
from isoflop.serve.gateway import Model as Served
from isoflop.serve.keys import Keys
from isoflop.serve.manifests import PORT, Deployed, replicas, write
from isoflop.serve.meters import Meters
from isoflop.serve.settings import Settings
from isoflop.store import Project

VERSIONS = ("1.34", "1.37")
OURS: dict[str, Any] = {
    "ScaledObject": ScaledObject,
    "ServiceMonitor": ServiceMonitor,
}  # kinds that are not Kubernetes' own
FULL = Deployed(
    image="registry.example.org/isoflop:1", model="/project/artifacts/a 'b\": {c}.gguf".replace(" ", "_"),
    name="models", namespace="teams", least=2, most=6, redis="redis.teams.svc:6380", postgres_port=5433,
    slots=16, drain=45.5, cpu="500m", memory="800Mi", clients=("ingress-nginx", "web"),
)  # fmt: skip
PLAIN = Deployed(image="isoflop", model="model")


def documents(folder: Path, asked: Deployed) -> dict[str, Any]:
    """By their kinds."""
    found = [yaml.safe_load(path.read_text()) for path in write(folder, asked) if path.suffix == ".yaml"]
    return {document["kind"]: document for document in found}


def check(document: Any) -> None:
    """Raises where a document has another form than its kind's schema, or a field that this has not."""
    ours = OURS.get(document["kind"])
    if ours is None:
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
        return
    found = ours.model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert found == document


@pytest.mark.parametrize("asked", [FULL, PLAIN])
def test_all_have_the_form_of_their_schemas(asked: Deployed, tmp_path: Path) -> None:
    found = documents(tmp_path / "new", asked)
    kinds = {"Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget", *OURS}
    assert set(found) == {*kinds, "Kustomization"}
    for kind in kinds:
        check(found[kind])
    listed = {f"{document['kind'].lower()}.yaml" for document in found.values()} - {"kustomization.yaml"}
    assert set(found["Kustomization"]["resources"]) == listed


def test_the_schemas_refuse_what_is_wrong(tmp_path: Path) -> None:
    found = documents(tmp_path, FULL)
    found["Deployment"]["spec"]["template"]["spec"]["containers"][0]["port"] = 1
    found["Service"]["spec"]["ports"][0]["port"] = "http"
    del found["ScaledObject"]["spec"]["triggers"]
    found["ServiceMonitor"]["spec"]["endpoints"][0]["authorisation"] = {}
    for kind in ("Deployment", "Service"):
        with pytest.raises(kubernetes_validate.ValidationError):
            check(found[kind])
    for kind in OURS:
        with pytest.raises((ValidationError, AssertionError)):
            check(found[kind])


def test_it_is_closed_and_ends_in_order(tmp_path: Path) -> None:
    found = documents(tmp_path, FULL)
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > FULL.drain + 5
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["command"][-1] == FULL.model
    assert not pod["automountServiceAccountToken"]
    assert "replicas" not in found["Deployment"]["spec"]  # they are KEDA's
    secrets = {one["valueFrom"]["secretKeyRef"]["name"] for one in container["env"] if "valueFrom" in one}
    assert secrets == {"models-ledger", "models-metrics"}
    credentials = found["ServiceMonitor"]["spec"]["endpoints"][0]["authorization"]["credentials"]
    assert credentials == {"name": "models-metrics", "key": "key"}
    ways = found["NetworkPolicy"]["spec"]
    assert {port["port"] for rule in ways["egress"] for port in rule["ports"]} == {53, 5433, 6380}
    assert len(ways["ingress"][0]["from"]) == 4
    scaled = found["ScaledObject"]["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 6)


def test_it_is_served_as_serve_is_typed(tmp_path: Path) -> None:
    container = documents(tmp_path, FULL)["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    words = [*container["command"][2:], *container["args"]]
    given = serve.make_context("serve", list(words)).params
    assert given["models"] == [FULL.model]
    assert (given["slots"], given["drain"], given["host"], given["port"]) == (16, 46, "0.0.0.0", PORT)
    assert given["rate_storage"] == "redis://redis.teams.svc:6380"


def test_keda_asks_for_what_is_measured(tmp_path: Path) -> None:
    (trigger,) = documents(tmp_path, FULL)["ScaledObject"]["spec"]["triggers"]
    meters = Meters(lambda: [Model()])
    meters.began(made())
    measured = {family.name for family in text_string_to_metric_families(meters.render("")[0].decode())}
    named = set(re.findall(r"isoflop:\w+", trigger["metadata"]["query"]))
    assert len(named) == 2
    assert named <= measured
    assert trigger["metadata"]["threshold"] == "16"
    if promtool := shutil.which("promtool"):
        rules = {"groups": [{"name": "a", "rules": [{"record": "b", "expr": trigger["metadata"]["query"]}]}]}
        (tmp_path / "rules.yml").write_text(json.dumps(rules))
        subprocess.run([promtool, "check", "rules", tmp_path / "rules.yml"], check=True, capture_output=True)


def test_the_probe_asks_with_its_key(tmp_path: Path) -> None:
    container = documents(tmp_path, PLAIN)["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"  # which needs none
    command = container["readinessProbe"]["exec"]["command"]
    keys = Keys(Project(tmp_path / "project"))
    key, _ = keys.new("metrics", scopes=("metrics",))
    engine = Echo()
    gateway = Gateway({"echo": Served("echo", engine)}, Settings(), keys)

    def probed(url: str, key: str) -> int:
        script = command[2].replace(f"127.0.0.1:{PORT}", url.removeprefix("http://"))
        environment = os.environ | {"ISOFLOP_METRICS_KEY": key}
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True).returncode

    with on_a_socket(build_app(gateway)) as url:
        assert probed(url, key) == 1  # the engine is not alive
        engine.started = True
        assert probed(url, key) == 0
        assert probed(url, "isk_other") == 1


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_puts_them_together(tmp_path: Path) -> None:
    write(tmp_path, FULL)
    done = subprocess.run(["kubectl", "kustomize", tmp_path], capture_output=True, text=True, check=True)
    made = list(yaml.safe_load_all(done.stdout))
    assert len(made) == 6
    assert {document["metadata"]["namespace"] for document in made} == {"teams"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "My_Server"}, "--name is 'My_Server'"),
        ({"image": ""}, "--image is ''"),
        ({"model": "two words"}, "--model"),
        ({"redis": "redis://h:1"}, "--redis is 'redis://h:1'"),
        ({"memory": "much"}, "--memory"),
        ({"clients": ("a b",)}, "--client is 'a b'"),
        ({"least": 0}, "--replicas is 0:4"),
        ({"least": 5}, "--replicas is 5:4"),
    ],
)
def test_what_cannot_be_is_told(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=re.escape(words)):
        write(tmp_path / "none", PLAIN.model_copy(update=change))
    assert not (tmp_path / "none").exists()


def test_replicas_are_read() -> None:
    assert replicas("2:8") == (2, 8)
    with pytest.raises(ServeError, match="not LEAST:MOST"):
        replicas("3")
