"""The cluster launcher's file against Ray's own schema and checks; no cloud is asked."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


def check(config):
    """What ``ray up`` checks before it asks the cloud for anything."""
    jsonschema.validate(config, SCHEMA)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_file(config):
    prepared = check(config)
    assert prepared["cluster_name"] == "dataprune"
    assert prepared["setup_commands"] == config["setup_commands"]


def test_no_task_lands_on_the_head(config):
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert prepare_config(copy.deepcopy(config))["available_node_types"]["head"]["max_workers"] == 0


def test_gpu_workers_are_spot_and_come_only_with_work(config):
    kinds = config["available_node_types"].values()
    (gpu,) = [kind for kind in kinds if kind["resources"].get("GPU")]
    assert gpu["min_workers"] == 0 < gpu["max_workers"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert config["idle_timeout_minutes"] > 0
    cpu = [k for k in kinds if k["resources"]["CPU"] and not k["resources"].get("GPU")]
    assert all("InstanceMarketOptions" not in kind["node_config"] for kind in cpu)


def test_all_nodes_run_one_image_and_one_ray(config):
    images = {kind["node_config"]["ImageId"] for kind in config["available_node_types"].values()}
    assert len(images) == 1
    assert any("ray[data,default,train]==" in line for line in config["setup_commands"])


def test_each_kind_respects_its_own_and_the_common_ceiling(config):
    for kind in config["available_node_types"].values():
        if "min_workers" in kind:
            assert kind["min_workers"] <= kind["max_workers"] <= config["max_workers"]


def test_what_the_start_commands_share_is_set_on_both_sides(config):
    for side in ("head", "worker"):
        (start,) = [c for c in config[f"{side}_start_ray_commands"] if "ray start" in c]
        assert "RAY_AUTH_MODE=token" in start
        assert "6379" in start
    assert "~/.ray/auth_token" in config["file_mounts"]


def unknown_key(config):
    config["idle_timeout"] = 5


def unknown_key_of_a_node(config):
    config["available_node_types"]["cpu"]["min_worker"] = 1


def no_such_head(config):
    config["head_node_type"] = "heads"


def more_at_least_than_at_most(config):
    config["available_node_types"]["gpu_spot"]["min_workers"] = config["max_workers"] + 1


def half_a_cpu(config):
    config["available_node_types"]["cpu"]["resources"]["CPU"] = 0.5


def no_provider(config):
    del config["provider"]


@pytest.mark.parametrize(
    "spoil",
    [
        unknown_key,
        unknown_key_of_a_node,
        no_such_head,
        more_at_least_than_at_most,
        half_a_cpu,
        no_provider,
    ],
)
def test_a_broken_file_is_refused(config, spoil):
    spoil(config)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        check(config)
