"""How many scoring actors there are, and what each asks of the cluster."""

from types import SimpleNamespace

import pytest

from dataprune_ray import scoring
from dataprune_ray.cluster import Cluster, pool_of
from dataprune_ray.config import PruneConfig, ScoreConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.plans import FragmentCount


@pytest.mark.parametrize(
    ("gpus", "asked", "actors"),
    [(2, 0.25, 8), (1, 0.25, 4), (3, 0.3, 10), (1, 1.0, 1), (4, 2, 2), (0, 0.5, 1)],
)
def test_actors_share_gpus_by_fractions(gpus, asked, actors):
    pool = pool_of(ScoreConfig(num_gpus=asked), Cluster(16, gpus, "here", local=True))
    assert (pool.actors, pool.num_gpus, pool.num_cpus) == (actors, asked, 1.0)


@pytest.mark.parametrize(
    ("asked", "cpus_per_gpu", "cpus"), [(1.0, 16, 15), (0.25, 16, 3), (2, 4, 7), (0.25, 2, 1)]
)
def test_actors_with_gpus_share_the_cpus_of_their_nodes(asked, cpus_per_gpu, cpus):
    found = Cluster(64, 2, "a cluster", local=False, cpus_per_gpu=cpus_per_gpu)
    assert pool_of(ScoreConfig(num_gpus=asked), found).num_cpus == cpus


def test_actors_may_be_fewer_than_fit_the_gpus():
    given = pool_of(ScoreConfig(num_gpus=0.25, actors=3), Cluster(16, 2, "here", local=True))
    assert given.actors == 3


def test_more_than_one_gpu_per_actor_is_a_whole_number():
    with pytest.raises(ConfigError, match=r"num_gpus=1\.5"):
        PruneConfig.from_flat({"num_gpus": 1.5})
    assert PruneConfig.from_flat({"num_gpus": 2}).score.num_gpus == 2


class Dataset:
    """What the pool uses of Ray Data: notes its arguments and gives one count per fragment."""

    def __init__(self, items):
        self.items = items
        self.asked = None

    def map_batches(self, actor, **asked):
        self.actor, self.asked = actor, asked
        return self

    def iter_rows(self):
        for index in range(len(self.items)):
            yield {"failure": "", "count": FragmentCount(index, 10, 0).to_json()}


@pytest.mark.parametrize("share", [0.25, 0.0])
def test_a_fraction_of_a_gpu_reaches_the_actors(monkeypatch, share):
    made = []

    def from_items(items, override_num_blocks):
        assert override_num_blocks == len(items)
        made.append(Dataset(items))
        return made[0]

    monkeypatch.setattr(scoring.ray.data, "from_items", from_items)
    monkeypatch.setattr(scoring, "replace", lambda plan, **_: plan)
    plan = SimpleNamespace(rows=SimpleNamespace())
    fragments = [SimpleNamespace(to_json=lambda: "{}") for _ in range(6)]
    counts = list(scoring._run_pool(plan, fragments, scoring.Pool(4, 1.0, share)))
    assert [count.rows for count in counts] == [10] * 6
    asked = made[0].asked
    assert made[0].actor is scoring.FragmentScorer
    assert asked.get("num_gpus", 0.0) == share
    assert asked["num_cpus"] == 1.0
    assert asked["compute"].max_size == 4
