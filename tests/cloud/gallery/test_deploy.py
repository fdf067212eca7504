"""examples/deploy: what is written there can be understood, fits together, and fits the service."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import typer
import yaml

from samespace.cloud.cli.gallery import app as command
from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.cloud.gallery.serve import _GRACE
from samespace.cloud.gallery.serve_options import serve_options
from samespace.cloud.gallery.service import create_app

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "examples" / "deploy"
COMPOSE = yaml.safe_load((FOLDER / "docker-compose.yml").read_text())
MANIFESTS = {(m["kind"]): m for m in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())}
POD = MANIFESTS["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


def options_of(*path: str) -> dict[str, object]:
    """The options that a command knows."""
    found = typer.main.get_command(command)
    for name in path:
        found = found.commands[name]
    return {option: parameter for parameter in found.params for option in parameter.opts}


@pytest.mark.parametrize(
    "arguments",
    [COMPOSE["services"]["gallery"]["command"], COMPOSE["services"]["keys"]["command"], CONTAINER["args"]],
    ids=["compose", "compose-keys", "kubernetes"],
)
def test_every_argument_is_one(arguments: list[str]) -> None:
    assert arguments[0] == "gallery"
    words = [word for word in arguments[1:] if not word.startswith("--")]
    known = options_of(*words)
    given = dict(word.partition("=")[::2] for word in arguments if word.startswith("--"))
    assert given.keys() <= known.keys()
    assert not any("postgresql://" in word for word in arguments), (
        "a password among the arguments is in every list of processes"
    )
    if words == ["serve"]:
        assert given["--keys"] == "on"
        serve_options(keys=given["--keys"], rate=float(given["--rate"]), drain=float(given["--drain"]))


def test_compose_fits_together() -> None:
    services, secrets = COMPOSE["services"], COMPOSE["secrets"]
    for name, service in services.items():
        assert "image" in service or "build" in service, name
        assert set(service.get("networks", [])) <= COMPOSE["networks"].keys()
        assert set(service.get("secrets", [])) <= secrets.keys()
        assert set(service.get("depends_on", {})) <= services.keys()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith("./") or source in COMPOSE["volumes"]
        # What is reachable from outside is the gallery, and only from this machine.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for dependency in services["gallery"]["depends_on"]:
        assert "healthcheck" in services[dependency]
    build = services["gallery"]["build"]
    assert (FOLDER / build["context"] / build["dockerfile"]).resolve() == FOLDER / "Dockerfile"
    assert "database" not in [n for s in services.values() for n in s.get("ports", [])]
    grace = float(services["gallery"]["stop_grace_period"].removesuffix("s"))
    drain = next(float(word.split("=")[1]) for word in services["gallery"]["command"] if word.startswith("--drain"))
    assert grace > drain + _GRACE


def test_the_image_copies_what_is_there() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY "):
            for source in shlex.split(line)[1:-1]:
                assert (ROOT / source).exists(), line
    assert any(line.startswith("USER ") and line != "USER root" for line in lines)
    extra = re.search(r"\[(\w+)\]", "\n".join(lines))[1]
    assert re.search(rf"^{extra} = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_kubernetes_fits_together() -> None:
    deployment = MANIFESTS["Deployment"]["spec"]
    labels = POD["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    for kind, where in (("Service", "selector"), ("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        selector = MANIFESTS[kind]["spec"][where]
        assert selector.get("matchLabels", selector).items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert {port["targetPort"] for port in MANIFESTS["Service"]["spec"]["ports"]} <= ports.keys()
    assert f"--port={ports['http']}" in CONTAINER["args"]
    assert POD["metadata"]["annotations"]["prometheus.io/port"] == str(ports["http"])
    mounts, volumes = (
        {m["name"]: m["mountPath"] for m in CONTAINER["volumeMounts"]},
        {v["name"] for v in POD["spec"]["volumes"]},
    )
    assert mounts.keys() == volumes
    secret = next(v for v in POD["spec"]["volumes"] if v["name"] == "secrets")["secret"]["items"][0]["path"]
    assert f"--secret-file={mounts['secrets']}/{secret}" in CONTAINER["args"]
    claims = [v["persistentVolumeClaim"]["claimName"] for v in POD["spec"]["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [MANIFESTS["PersistentVolumeClaim"]["metadata"]["name"]]
    assert POD["spec"]["serviceAccountName"] == MANIFESTS["ServiceAccount"]["metadata"]["name"]
    drain = next(float(word.split("=")[1]) for word in CONTAINER["args"] if word.startswith("--drain"))
    assert POD["spec"]["terminationGracePeriodSeconds"] > drain + _GRACE
    # Long enough to be noticed before the service stops.
    probe = CONTAINER["readinessProbe"]
    assert drain > probe["periodSeconds"] * probe["failureThreshold"]
    database = next(v["name"] for v in CONTAINER["env"] if "secretKeyRef" in v.get("valueFrom", {}))
    assert options_of("serve")["--database"].envvar == database


def test_probes_and_scrapes_ask_for_what_the_service_answers() -> None:
    routes = set(create_app(Gallery(MemoryRegistry(), MemoryIndex())).openapi()["paths"])
    asked = {CONTAINER[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    asked.add(POD["metadata"]["annotations"]["prometheus.io/path"])
    asked.add(re.search(r"8765(/\w+)'", " ".join(COMPOSE["services"]["gallery"]["healthcheck"]["test"]))[1])
    assert asked <= routes | {"/metrics"}


def test_kubernetes_schemas_take_the_manifests() -> None:
    for manifest in MANIFESTS.values():
        kubernetes_validate.validate(manifest, "1.33", strict=True)


def test_a_manifest_with_a_mistake_is_noticed() -> None:
    wrong = {**MANIFESTS["Service"], "spec": {"ports": [{"prot": 80}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.33", strict=True)
