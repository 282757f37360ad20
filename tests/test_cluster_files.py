"""The files that start clusters: one version of Ray, a token everywhere, nothing open, and forms that are accepted.

`cluster.yaml` is run for real in tests/services/test_cluster.py.
"""

import copy
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from prunefront.pipelines.config.read import parse

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "examples/clusters"
RAY_UP = (ROOT / "cluster.yaml", CLUSTERS / "aws.yaml")
RAY_JOB = CLUSTERS / "kuberay-rayjob.yaml"
SHIPPED = (*RAY_UP, *sorted(p for p in CLUSTERS.iterdir() if p not in RAY_UP))
SCHEMA = json.loads((ROOT / "tests/kuberay-rayjob.schema.json").read_text())


def documents(path: Path) -> dict[str, dict[str, Any]]:
    """The documents of a Kubernetes file, by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(path.read_text())}


def pods() -> Iterator[dict[str, Any]]:
    """The pod specs of the RayJob."""
    spec = documents(RAY_JOB)["RayJob"]["spec"]
    yield spec["submitterPodTemplate"]["spec"]
    cluster = spec["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def test_every_version_of_ray_that_is_named_is_the_one_that_is_installed() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (pinned,) = (d.partition("==")[2] for d in dependencies if d.startswith("ray["))
    assert re.fullmatch(pinned.replace(".", r"\.").replace("*", r"\d+"), ray.__version__)
    named = {
        path.name: re.findall(r"(?:rayproject/ray:|rayVersion: \")(\d+\.\d+\.\d+)", path.read_text())
        for path in SHIPPED
    }
    assert named["Dockerfile"] == named["kuberay-rayjob.yaml"] == [ray.__version__]
    assert set().union(*named.values()) == {ray.__version__}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_nothing_listens_to_everybody(path: Path) -> None:
    text = path.read_text()
    assert "dashboard-host" not in text, "loopback is Ray's own choice"
    assert "0.0.0.0" not in text


PROJECT = {"pyproject.toml", "README.md", "src", "prunefront", "search", "pruners", "pipelines"}
"""What prunefront is installed from."""


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_what_is_installed_lies_apart_from_what_is_searched(path: Path) -> None:
    """Beside a study, our `search` and `pipelines` would hide the person's own modules of these names."""
    mounts = yaml.safe_load(path.read_text())["file_mounts"]
    installed = {v: k for k, v in mounts.items() if k == f"~/prunefront-source/{v}"}
    assert set(installed) == PROJECT | {"Makefile", "scripts"}
    beside = {v for k, v in mounts.items() if k == f"~/prunefront/{v}"}
    assert beside == {"examples", "study.toml"}


def test_the_image_is_built_from_the_whole_project() -> None:
    text = (CLUSTERS / "Dockerfile").read_text()
    copied = [line.split()[2:] for line in text.splitlines() if line.startswith("COPY")]
    assert {source for *sources, _ in copied for source in sources} == PROJECT


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_ray_takes_the_file_and_starts_with_a_token(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    validate_config(prepare_config(copy.deepcopy(config)))
    lines = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [line for line in lines if "ray start" in line]
    assert len(starts) == 2
    assert all(re.search(r"\bRAY_AUTH_MODE=token\b.* ray start", line) for line in starts)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for source in config["file_mounts"].values():
        assert source.startswith("~") or (ROOT / source).exists(), f"a clone has no {source}"


def test_ray_refuses_a_key_that_there_is_not() -> None:
    config = yaml.safe_load(RAY_UP[0].read_text())
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**config, "no_such_key": 1}))


def test_the_rayjob_keeps_kuberays_schema() -> None:
    job = documents(RAY_JOB)["RayJob"]
    jsonschema.validate(job, SCHEMA)
    for wrong in (
        lambda spec: spec.update(entrypoints="typo"),
        lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="tokens"),
        lambda spec: spec["rayClusterSpec"]["headGroupSpec"].pop("template"),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].update(replicas="2"),
        lambda spec: spec["submitterPodTemplate"]["spec"]["containers"][0].update(images="x"),
    ):
        broken = copy.deepcopy(job)
        wrong(broken["spec"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


def test_the_rayjob_runs_a_study_that_is_one() -> None:
    found = documents(RAY_JOB)
    text = found["ConfigMap"]["data"]["study.toml"]
    config = parse(tomllib.loads(text), source="study.toml", base=Path())
    assert config.artifact_uri.startswith("s3://"), "workers publish from pods of their own"
    head = found["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounted = {m["mountPath"]: m["name"] for c in head["containers"] for m in c["volumeMounts"]}
    words = found["RayJob"]["spec"]["entrypoint"].split()
    assert words[:2] == ["prunefront", "search"]
    assert words[2] == f"/etc/prunefront/{next(iter(found['ConfigMap']['data']))}"
    volumes = {volume["name"]: volume for volume in head["volumes"]}
    assert volumes[mounted["/etc/prunefront"]]["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    claim = volumes[mounted[words[words.index("--folder") + 1]]]["persistentVolumeClaim"]["claimName"]
    assert claim == found["PersistentVolumeClaim"]["metadata"]["name"]


def test_the_rayjobs_pods_are_no_root_and_keep_no_secret() -> None:
    cluster = documents(RAY_JOB)["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in cluster["headGroupSpec"]
    images = set()
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            images.add(container["image"])
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"].keys() == {"cpu", "memory"}
            assert not [e for e in container.get("env", []) if "KEY" in e["name"] or "TOKEN" in e["name"]]
    assert len(images) == 1, "one image, so one version of everything"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert images == {f"{project['name']}:{project['version']}"}
    s3 = {"secretRef": {"name": "prunefront-s3"}}
    assert [pod["containers"][0].get("envFrom") for pod in pods()] == [None, [s3], [s3]]
