"""On public data sets: the numbers that a right implementation gives."""

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from cifar_resnet import resnet20

from dataprune_ray.config import PruneConfig
from dataprune_ray.corpora import make_corpus
from dataprune_ray.corpora.config import MakeCorpusConfig
from dataprune_ray.pipeline import prune

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.data]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def independent(rows, checkpoint):
    """EL2N (n,) and correctness (n,) by a plain loop over decoded rows."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    model = resnet20(10)
    model.load_state_dict({name.removeprefix("module."): t for name, t in state.items()})
    model.eval()
    scores, right = [], []
    for start in range(0, len(rows), 500):
        part = rows[start : start + 500]
        images = [Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB") for row in part]
        x = torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2)
        x = (x.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        y = torch.tensor([row["label"] for row in part])
        with torch.no_grad():
            p = torch.softmax(model(x), 1)
        right.append(p.argmax(1) == y)
        p[torch.arange(len(y)), y] -= 1
        scores.append(p.norm(dim=1))
    return torch.cat(scores).numpy(), torch.cat(right).numpy()


def test_cifar10_with_its_checkpoint(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index in range(2):
        shutil.copy(data_dir / "cifar10" / f"train-{index:05d}-of-00008.parquet", corpus)
    checkpoint = data_dir / "weights" / "cifar10-resnet20.th"
    manifest = prune(
        PruneConfig.from_flat(
            {
                "input": str(corpus),
                "output": f"{tmp_path}/out",
                "model": "cifar_resnet:resnet20",
                "checkpoint": [str(checkpoint)],
                "mean": MEAN,
                "std": STD,
                "metric": ["el2n", "margin"],
                "strategy": "class_balanced",
                "keep": 0.3,
            }
        )
    )
    source = pq.read_table(corpus)
    rows = source.to_pylist()
    scores = pq.read_table(tmp_path / "out" / "scores")
    expected, right = independent(rows, checkpoint)
    assert np.abs(scores["el2n"].to_numpy() - expected).max() < 1e-4
    accuracy = (scores["margin"].to_numpy() > 0).mean()
    assert accuracy == pytest.approx(right.mean(), abs=1e-3)
    assert accuracy == pytest.approx(0.860, abs=0.01)
    sizes = np.bincount(source["label"].to_numpy())
    assert [c["kept"] for c in manifest["classes"]] == [int(0.3 * n + 0.5) for n in sizes]
    kept = pq.read_table(tmp_path / "out" / "decisions")["kept"].to_pylist()
    written = pq.read_table(tmp_path / "out" / "data")
    assert written.to_pylist() == [row for row, keep in zip(rows, kept, strict=True) if keep]
    assert written.schema.equals(source.schema, check_metadata=True)
    assert b"huggingface" in written.schema.metadata


def test_mnist_halved_by_its_own_proxy(data_dir, tmp_path):
    made = {"source": "torchvision:MNIST", "root": str(data_dir), "split": "train"}
    corpus = tmp_path / "mnist"
    make_corpus(MakeCorpusConfig.from_flat({**made, "output": str(corpus), "layout": "raw"}))
    manifest = prune(
        PruneConfig.from_flat(
            {
                "input": str(corpus / "train"),
                "output": f"{tmp_path}/out",
                "proxy_seeds": 1,
                "proxy_epochs": 1,
                "model": "mlp",
            }
        )
    )
    assert manifest["rows"]["kept"] == 30_000
    assert manifest["model"]["proxies"][0]["accuracy"] > 0.9
    assert sum(part["rows"] for part in manifest["outputs"]) == 30_000


def test_sst2_from_the_tsv(data_dir, tmp_path):
    made = {"source": f"table:{data_dir}/sst2/train.tsv", "output": f"{tmp_path}/sst2"}
    make_corpus(MakeCorpusConfig.from_flat({**made, "limit": 20_000}))
    manifest = prune(
        PruneConfig.from_flat(
            {
                "input": f"{tmp_path}/sst2/train",
                "output": f"{tmp_path}/out",
                "id_column": "id",
                "keep": 0.7,
                "proxy_seeds": 1,
                "proxy_epochs": 1,
            }
        )
    )
    assert manifest["recognised"][0].startswith("text features")
    assert manifest["rows"]["kept"] == 14_000
    sentences = pq.read_table(tmp_path / "out" / "data")["sentence"].to_pylist()
    original = (data_dir / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:20_001]
    assert set(sentences) <= {line.split("\t")[1] for line in original}
