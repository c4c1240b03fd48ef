"""The Kubernetes file against the fields that KubeRay documents, and the job's own flags."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from dataprune_ray import cli
from dataprune_ray.config import PruneConfig

ROOT = Path(__file__).parents[2]


def fields(required=(), **properties):
    """An object that has these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def some_of(items, least=1):
    return {"type": "array", "items": items, "minItems": least}


TEXT, BOOL = {"type": "string", "minLength": 1}, {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITIES = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
CONTAINER = fields(
    ["name", "image"],
    name=TEXT,
    image=TEXT,
    ports=some_of(fields(["containerPort"], containerPort=COUNT, name=TEXT)),
    resources=fields(["limits"], requests=QUANTITIES, limits=QUANTITIES),
)
POD = fields(
    ["spec"],
    spec=fields(
        ["containers"],
        containers=some_of(CONTAINER),
        restartPolicy={"enum": ["Never"]},
        serviceAccountName=TEXT,
        tolerations=some_of(fields(key=TEXT, operator=TEXT, effect=TEXT)),
    ),
)
CLUSTER = fields(
    ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
    rayVersion=TEXT,
    authOptions=fields(mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=BOOL,
    autoscalerOptions=fields(version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=COUNT),
    headGroupSpec=fields(["template"], rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=some_of(
        fields(
            ["groupName", "minReplicas", "maxReplicas", "template"],
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=POD,
        )
    ),
)
JOB = fields(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=TEXT,
    shutdownAfterJobFinishes=BOOL,
    ttlSecondsAfterFinished=COUNT,
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    rayClusterSpec=CLUSTER,
)
CRON = fields(["schedule", "jobTemplate"], schedule=TEXT, suspend=BOOL, jobTemplate=JOB)
#: One field of the crontab format: numbers, ranges, lists, steps.
FIELD = r"(\*|\d+(-\d+)?)(/\d+)?(,(\*|\d+(-\d+)?)(/\d+)?)*"
SCHEMA = fields(
    ["apiVersion", "kind", "items"],
    apiVersion={"const": "v1"},
    kind={"const": "List"},
    items={
        "type": "array",
        "items": {
            "oneOf": [
                fields(
                    ["apiVersion", "kind", "metadata", "spec"],
                    apiVersion={"const": "ray.io/v1"},
                    kind={"const": kind},
                    metadata=fields(["name"], name={"pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}),
                    spec=spec,
                )
                for kind, spec in (("RayJob", JOB), ("RayCronJob", CRON))
            ]
        },
    },
)


@pytest.fixture
def content():
    return yaml.safe_load((ROOT / "jobs" / "rayjob.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def items(content):
    return {item["kind"]: item["spec"] for item in content["items"]}


@pytest.fixture
def jobs(items):
    return [items["RayJob"], items["RayCronJob"]["jobTemplate"]]


def test_every_field_is_one_that_kuberay_documents(content):
    jsonschema.validate(content, SCHEMA)


def test_the_schedule_is_one_of_cron(items):
    jsonschema.validate(
        items["RayCronJob"]["schedule"], {"pattern": "^" + r"\s".join([FIELD] * 5) + "$"}
    )


def test_the_commands_are_understood(jobs):
    for job in jobs:
        python, script, *arguments = shlex.split(job["entrypoint"])
        assert (python, script) == ("python", "jobs/prune.py")
        assert (ROOT / script).is_file()
        config, options = cli.parse(PruneConfig, arguments, "", {})
        assert options.json
        assert config.corpus.input.startswith("s3://")
        assert config.write.output.startswith("s3://")


def test_jobs_end_and_take_their_clusters_along(jobs):
    for job in jobs:
        assert job["shutdownAfterJobFinishes"] is True
        assert 0 < job["ttlSecondsAfterFinished"] <= 3600
        assert job["activeDeadlineSeconds"] > 0


def test_only_a_run_that_can_continue_is_tried_again(jobs):
    for job in jobs:
        assert (job["backoffLimit"] > 0) == ("--overwrite" not in job["entrypoint"])


def test_gpus_come_with_the_work_and_are_enough_for_the_actors(jobs):
    for job in jobs:
        cluster = job["rayClusterSpec"]
        assert cluster["enableInTreeAutoscaling"] is True
        gpus = [g for g in cluster["workerGroupSpecs"] if gpu_limit(g)]
        assert [g["minReplicas"] for g in gpus] == [0]
        config, _ = cli.parse(PruneConfig, shlex.split(job["entrypoint"])[2:], "", {})
        offered = sum(g["maxReplicas"] * gpu_limit(g) for g in gpus)
        assert config.score.actors * config.score.num_gpus <= offered
        (cpus,) = [g for g in cluster["workerGroupSpecs"] if not gpu_limit(g)]
        assert 1 <= cpus["minReplicas"] <= cpus["maxReplicas"]


def gpu_limit(group):
    (container,) = group["template"]["spec"]["containers"]
    return container["resources"]["limits"].get("nvidia.com/gpu", 0)


def test_nothing_runs_on_the_head_and_all_run_one_image_and_ray(jobs):
    launcher = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    for job in jobs:
        cluster = job["rayClusterSpec"]
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        images = {c["image"] for g in groups for c in g["template"]["spec"]["containers"]}
        assert len(images) == 1
        assert any(f"=={cluster['rayVersion']}'" in c for c in launcher["setup_commands"])


def without_entrypoint(content):
    del content["items"][0]["spec"]["entrypoint"]


def misspelt(content):
    spec = content["items"][0]["spec"]
    spec["shutdownAfterJobFinish"] = spec.pop("shutdownAfterJobFinishes")


def without_cluster(content):
    del content["items"][1]["spec"]["jobTemplate"]["rayClusterSpec"]


def number_as_parameter(content):
    content["items"][0]["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def other_kind(content):
    content["items"][0]["kind"] = "Job"


@pytest.mark.parametrize(
    "spoil", [without_entrypoint, misspelt, without_cluster, number_as_parameter, other_kind]
)
def test_a_broken_file_is_refused(content, spoil):
    spoilt = copy.deepcopy(content)
    spoil(spoilt)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spoilt, SCHEMA)
