"""The manifests of launch/: valid, and understood by what reads their variables."""

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
from helpers.launch import LAUNCH, MAIN, checker, documents, executable
from helpers.paths import ROOT

from vicreg_jax.devices import launchers


def test_dockerfile_is_correct():
    hadolint = [checker("hadolint"), LAUNCH / "Dockerfile"]
    found = subprocess.run(hadolint, capture_output=True, text=True, timeout=1500)
    assert found.returncode == 0, found.stdout


def test_dockerfile_copies_what_the_package_needs():
    text = (LAUNCH / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.search("ARG EXTRAS=(.*)", text)[1].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    copied = [word for line in re.findall("COPY (.*)", text) for word in line.split()]
    assert {"pyproject.toml", project["readme"], *project["license-files"]} <= {*copied}
    assert all((ROOT / name).exists() for name in copied)
    assert 'ENTRYPOINT ["python", "-m", "vicreg_jax.main"]' in text
    assert "\nUSER 1000\n" in text  # as the pods say


def variables_of(container):
    return {item["name"]: item["value"] for item in container.get("env", [])}


def validate(document, version):
    found = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    found.validate(document, version, strict=True)


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_kubernetes_manifests_are_valid(version):
    for document in documents("kubernetes.yaml"):
        validate(document, version)
    (jobset,) = documents("kubernetes_tpu.yaml")
    for job in jobset["spec"]["replicatedJobs"]:  # JobSet itself is not of Kubernetes
        job = {"apiVersion": "batch/v1", "kind": "Job", **job["template"]}
        validate(job | {"metadata": {"name": "slice"}}, version)


def test_pods_of_the_job_find_each_other():
    service, job = documents("kubernetes.yaml")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    name = job["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    (port,) = (x["port"] for x in service["spec"]["ports"])
    pods = spec["completions"]
    assert spec["parallelism"] == pods
    for index in range(pods):
        environ = variables_of(container) | {"JOB_COMPLETION_INDEX": str(index)}
        assert launchers.wanted(environ) == {
            "coordinator_address": f"{name}-0.{pod['subdomain']}:{port}",
            "num_processes": pods,
            "process_id": index,
            "cluster_detection_method": "deactivate",
        }


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kubernetes_tpu.yaml"])
def test_pods_are_started_again_unless_refused(name):
    document = documents(name)[-1]
    if document["kind"] == "JobSet":
        assert document["spec"]["failurePolicy"] == {
            "maxRestarts": 25,
            "rules": [
                {
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                }
            ],
        }
        document = document["spec"]["replicatedJobs"][0]["template"]
    spec, pod = document["spec"], document["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    refused = spec["podFailurePolicy"]["rules"][0]
    assert refused["action"] == "FailJob"
    assert refused["onExitCodes"]["values"] == [2]
    assert refused["onExitCodes"]["containerName"] == container["name"]
    assert pod["restartPolicy"] == "Never"  # the Job makes new pods
    assert {x["name"] for x in container["volumeMounts"]} == {
        x["name"] for x in pod["volumes"]
    }
    (limit,) = {"nvidia.com/gpu", "google.com/tpu"} & {
        *container["resources"]["limits"]
    }
    assert container["resources"]["limits"][limit] in (4, 8)


def test_hosts_of_the_tpu_slice_find_each_other():
    (jobset,) = documents("kubernetes_tpu.yaml")
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = 1
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    hosts = chips // container["resources"]["limits"]["google.com/tpu"]
    assert spec["completions"] == spec["parallelism"] == hosts
    assert variables_of(container) == {}  # GKE says it
    ports = {x["containerPort"] for x in container["ports"]}
    assert launchers.TPU_PORT in ports


@pytest.mark.parametrize("rank", [0, 1])
def test_skypilot_tells_each_node_of_the_others(rank, tmp_path):
    (task,) = documents("skypilot.yaml")
    nodes = task["num_nodes"]
    executable(
        tmp_path / ".venv" / "bin" / "python",
        f"""#!{sys.executable}
import json, os, sys
print(json.dumps([dict(os.environ), sys.argv[1:]]))
""",
    )
    done = subprocess.run(
        ["bash", "-c", task["run"]],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "HOME": "/home/me",
            "SKYPILOT_NODE_IPS": "\n".join(f"10.0.0.{i}" for i in range(nodes)),
            "SKYPILOT_NODE_RANK": str(rank),
            "SKYPILOT_NUM_NODES": str(nodes),
            **task["envs"],
        },
        capture_output=True,
        text=True,
        timeout=1500,
    )
    environ, words = json.loads(done.stdout)
    found = launchers.wanted(environ)
    assert found["coordinator_address"] == "10.0.0.0:8476"
    assert (found["num_processes"], found["process_id"]) == (nodes, rank)
    assert words == [
        *(*MAIN, "--config=configs/imagenet.py"),
        *(
            "--config.data.path=/home/me/imagenet/train",
            "--workdir=gs://BUCKET/imagenet",
        ),
    ]


def test_skypilot_knows_the_fields(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed")
    assert sky.Task.from_yaml(str(LAUNCH / "skypilot.yaml")).num_nodes == 2
