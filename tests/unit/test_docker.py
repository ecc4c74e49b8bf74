"""The files of docker/ agree with one another and with the package."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import MISSING, fields
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prometheus_client.core import CollectorRegistry

from helios_batch.cli import app
from helios_batch.queue import metrics
from helios_batch.queue.keys import Keys
from helios_batch.queue.metrics import JOB_COUNTERS
from helios_batch.report.snapshot import JobView, QueueView, WorkerView
from tests.support.jobs import ROOT

DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("helios-batch")]
METRIC = re.compile(r"\bhelios_batch_[a-z_]+")


def lines(file: Path, instruction: str) -> list[str]:
    """Return what follows an instruction of a Dockerfile, each time it is there."""
    text = file.read_text().replace("\\\n", " ")
    return re.findall(rf"^{instruction} +(.*)$", text, re.MULTILINE)


def test_compose_mounts_and_builds_what_is_there() -> None:
    """Each file that compose names exists; each volume and network is declared."""
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":", 1)[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
            elif not source.startswith("$"):
                assert source in COMPOSE["volumes"]
        build = service.get("build")
        if build:
            assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
            stages = [
                stage.rpartition(" AS ")[2] for stage in lines(ROOT / build["dockerfile"], "FROM")
            ]
            assert build.get("target") in (None, *stages)
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert set(service.get("depends_on", [])) <= set(SERVICES)


def test_images_are_pinned() -> None:
    """No base and no service is `latest`; what is not built here has a full version."""
    images = [service["image"] for name, service in SERVICES.items() if name not in OURS]
    stages = {"base"}
    images += [
        line.split()[0]
        for file in DOCKERFILES
        for line in lines(file, "FROM")
        if line.split()[0] not in stages
    ]
    for image in images:
        assert re.search(r":v?\d+\.\d+\.\d+", image), image
    built = {service["image"] for service in SERVICES.values() if "build" in service}
    assert {SERVICES[name]["image"] for name in OURS} <= built


def test_nothing_runs_as_root() -> None:
    """Every image of ours ends as another user, and so does every service; none gains rights."""
    for file in DOCKERFILES:
        assert all(re.fullmatch(r"10001:10001", user) for user in lines(file, "USER"))
        assert file.read_text().rindex("USER ") > file.read_text().rindex("RUN ")
    for name, service in SERVICES.items():
        assert not str(service["user"]).startswith(("0", "root")), name
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"]
        assert "no-new-privileges:true" in service["security_opt"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is published to others"


def test_health_is_asked_for() -> None:
    """Each image of ours and each service says how it is, but beat, which is no worker."""
    for file in DOCKERFILES:
        assert len(lines(file, "HEALTHCHECK")) == len(lines(file, "USER"))
    for name, service in SERVICES.items():
        assert name in OURS or "test" in service["healthcheck"]
    without = [
        name for name, service in SERVICES.items() if "disable" in service.get("healthcheck", {})
    ]
    assert without == ["beat"]


def test_commands_are_commands_of_ours() -> None:
    """What the containers run is known to `helios-batch`, options included."""
    known = typer.main.get_command(app).commands
    used = [SERVICES[name]["command"] for name in OURS if "command" in SERVICES[name]]
    used += [json.loads(line) for file in DOCKERFILES for line in lines(file, "CMD")]
    assert used
    for name, *arguments in used:
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {part for part in arguments if part.startswith("--")} <= options


def test_secrets_come_from_outside() -> None:
    """Every password is a variable that must be set."""
    secret = re.compile(r"PASSWORD|AUTH|URL")
    found = [
        value
        for service in SERVICES.values()
        for key, value in service.get("environment", {}).items()
        if secret.search(key)
    ]
    assert len(found) > 3
    assert all(re.search(r"\$\{[A-Z_]+_PASSWORD:\?", value) for value in found)


def test_versions_are_pinned() -> None:
    """Each dependency, and what it needs in turn, has one version within what pyproject asks."""
    pins = dict(
        line.split("==")
        for line in (DOCKER / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for text in (*wanted, *(requires("celery") or ()), *(requires("transformers") or ())):
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def dashboard() -> list[str]:
    """Return the queries of the dashboard."""
    file = DOCKER / "grafana" / "dashboards" / "helios_batch.json"
    panels = json.loads(file.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def exported(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the names under which a worker of a queue with a job exports its metrics."""
    kinds = {"str": "x", "int": 1, "float": 1.0, "dict[str, int]": dict.fromkeys(JOB_COUNTERS, 1)}

    def made(view: Any) -> Any:
        types = {field.name: str(field.type) for field in fields(view) if field.default is MISSING}
        return view(**{name: kinds.get(kind) for name, kind in types.items()})

    view = QueueView(0.0, (made(JobView),), (made(WorkerView),))
    monkeypatch.setattr(metrics, "view_queue", lambda jobs: view)
    jobs: Any = SimpleNamespace(client=SimpleNamespace(llen=lambda key: 1), keys=Keys("x"))
    registry = CollectorRegistry()
    registry.register(metrics.QueueCollector(jobs, "x"))
    return {sample.name for family in registry.collect() for sample in family.samples}


def test_the_dashboard_shows_what_workers_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each metric of the dashboard is one that workers export, and each exported one is shown."""
    asked = {name for query in dashboard() for name in METRIC.findall(query)}
    assert exported(monkeypatch) == asked


def test_monitoring_finds_what_compose_runs() -> None:
    """Prometheus asks the workers' own port, Grafana asks Prometheus, and has the dashboard."""
    (scrape,) = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    (found,) = scrape["dns_sd_configs"]
    for name in found["names"]:
        assert str(found["port"]) == SERVICES[name]["environment"]["HELIOS_METRICS_PORT"]
    provisioning = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    text = (DOCKER / "grafana" / "dashboards" / "helios_batch.json").read_text()
    assert set(re.findall(r'"uid": "(prometheus)"', text)) == {source["uid"]}
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "helios_batch.yml").read_text())[
        "providers"
    ]
    mounts = SERVICES["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts
