"""The manifest of docs/tutorials: YAML of the form that KubeRay documents, whose command this package understands."""

import shlex
from pathlib import Path

import yaml

from valueapprox.commands import train

MANIFEST = Path(__file__).parents[2] / "docs" / "tutorials" / "rayjob.yaml"


def test_its_form():
    job = yaml.safe_load(MANIFEST.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert {"name", "image", "resources"} <= set(container)
    assert all({"groupName", "replicas", "minReplicas", "maxReplicas"} <= set(group) for group in groups[1:])


def test_its_command():
    job = yaml.safe_load(MANIFEST.read_text())
    program, command, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("valueapprox", "train")
    options = train.parse(arguments)
    assert options.ray_address == "auto"
    replicas = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"]
    assert options.workers == replicas
