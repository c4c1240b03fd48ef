"""Sources and the corpus directory: what goes in comes out, and nothing foreign is touched."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from dataprune_ray.corpora import SOURCES, make_corpus, make_digits
from dataprune_ray.corpora import rows as rows_module
from dataprune_ray.corpora import table as table_module
from dataprune_ray.corpora.config import MakeCorpusConfig
from dataprune_ray.corpora.noise import flip
from dataprune_ray.corpora.rows import group_batches, group_samples
from dataprune_ray.errors import BadDataError, ConfigError, UnknownNameError
from dataprune_ray.io.shards import Sample


def make(**settings):
    return make_corpus(MakeCorpusConfig.from_flat(settings))


def digest(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def png(value, shape=(4, 4)):
    buffer = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def folder_of(root, files):
    for name, content in files.items():
        path = os.path.join(os.fsencode(root), os.fsencode(name))  # noqa: PTH118
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(content)
    return root


# --- digits ---------------------------------------------------------------------------------


def test_digits_are_exact_and_sharded(tmp_path):
    out = tmp_path / "out"
    made = make(output=str(out), shard_rows=700, row_group_rows=300)
    names = [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert sorted(p.name for p in (out / "train").iterdir()) == names
    assert [pq.read_metadata(out / "train" / n).num_rows for n in names] == [700, 700, 397]
    about = pq.read_metadata(out / "train" / names[0])
    assert [about.row_group(i).num_rows for i in range(3)] == [300, 300, 100]
    table = pq.read_table(out / "train")
    found = [np.asarray(Image.open(io.BytesIO(v["bytes"]))) for v in table["img"].to_pylist()]
    source = load_digits()
    np.testing.assert_array_equal(np.stack(found), np.rint(source.images * 255 / 16))
    assert table["label"].to_pylist() == source.target.tolist()
    assert table["id"].to_pylist() == list(range(1797))
    assert (made.made, made.splits) == (True, {"train": 1797})
    assert made.next_command == f"python jobs/prune.py --input {out}/train --label label"
    about = json.loads((out / "corpus.json").read_text())
    assert about["class_names"] == [str(i) for i in range(10)]
    assert about["splits"] == {"train": 1797}
    assert about["features"] == ["img"]


def test_make_digits_is_made_once(tmp_path):
    train = make_digits(tmp_path / "d")
    before = {p: p.stat().st_mtime_ns for p in train.iterdir()}
    assert make_digits(tmp_path / "d") == train == tmp_path / "d" / "train"
    assert {p: p.stat().st_mtime_ns for p in train.iterdir()} == before
    assert pq.read_table(train).num_rows == 1797


# --- the output directory -------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["image", "tensor", "raw", "webdataset"])
def test_the_same_settings_give_the_same_bytes_then_nothing_to_do(layout, tmp_path):
    for name in ("a", "b"):
        made = make(output=str(tmp_path / name), layout=layout, limit=50, shard_rows=20)
        assert made.made
    first = digest(tmp_path / "a")
    assert first == digest(tmp_path / "b")
    assert len(first) == 4
    again = make(output=str(tmp_path / "a"), layout=layout, limit=50, shard_rows=20)
    assert not again.made
    assert again.splits == {"train": 50}


def test_other_settings_are_refused_unless_overwrite(tmp_path):
    out = tmp_path / "out"
    make(output=str(out), limit=50, shard_rows=20)
    (out / "train" / "mine.txt").write_text("keep me")
    before = digest(out)
    with pytest.raises(ConfigError, match=r"limit=50, shard_rows=20; pass --overwrite"):
        make(output=str(out), limit=30)
    assert digest(out) == before
    make(output=str(out), limit=30, overwrite=True)
    names = sorted(p.name for p in (out / "train").iterdir())
    assert names == ["mine.txt", "train-00000-of-00001.parquet"]
    assert sorted(p.name for p in out.iterdir()) == ["corpus.json", "train"]


def test_a_folder_that_is_no_corpus_is_refused(tmp_path):
    (tmp_path / "thesis.doc").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="is not empty and no corpus"):
            make(output=str(tmp_path), overwrite=overwrite)
    (tmp_path / "thesis.doc").rename(tmp_path / "corpus.json")
    with pytest.raises(ConfigError, match=r"corpus.json was not written by this job"):
        make(output=str(tmp_path), overwrite=True)
    with pytest.raises(ConfigError, match="is a file"):
        make(output=str(tmp_path / "corpus.json"))


def test_a_forged_list_removes_nothing_outside(tmp_path):
    (tmp_path / "precious").write_text("x")
    out = tmp_path / "out"
    make(output=str(out), limit=5)
    about = json.loads((out / "corpus.json").read_text())
    about["files"].append({"path": "../precious", "rows": 1, "bytes": 1})
    (out / "corpus.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match="not a shard"):
        make(output=str(out), limit=6, overwrite=True)
    assert (tmp_path / "precious").exists()


def test_a_killed_run_is_done_again(tmp_path, monkeypatch):
    out = tmp_path / "out"
    make(output=str(tmp_path / "whole"), limit=50, shard_rows=20)

    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dataprune_ray.corpora.output.CorpusFolder.finish", killed)
        with pytest.raises(KeyboardInterrupt):
            make(output=str(out), limit=50, shard_rows=20)
    assert not (out / "corpus.json").exists()
    (out / "train" / ".train-00001-of-00003.parquet.tmp").write_bytes(b"half")
    with (out / "corpus.unfinished.jsonl").open("a") as journal:
        journal.write('{"file": "tra')
    with pytest.raises(ConfigError, match="--overwrite"):
        make(output=str(out), limit=40)
    assert make(output=str(out), limit=50, shard_rows=20).made
    assert digest(out) == digest(tmp_path / "whole")


def test_a_lost_shard_is_made_again(tmp_path):
    make(output=str(tmp_path), limit=50, shard_rows=20)
    before = digest(tmp_path)
    next((tmp_path / "train").iterdir()).unlink()
    assert make(output=str(tmp_path), limit=50, shard_rows=20).made
    assert digest(tmp_path) == before


# --- names and settings ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "zoo:x"}, "choose one of: digits, images, npy, table, torchvision"),
        ({"source": "digits:x"}, "takes no argument"),
        ({"source": "images"}, "say which, as images:"),
        ({"source": "torchvision:Nope"}, "torchvision:CIFAR10, .*torchvision:MNIST"),
        ({"source": "torchvision:MNIST", "root": "/nowhere"}, "Pass --download, or as --root"),
        ({"source": "torchvision:ImageFolder"}, "unknown"),
        ({"layout": "zip"}, "image, raw, table, tensor, webdataset"),
        ({"layout": "table"}, "does not fit digits"),
        ({"output": "s3://bucket/x"}, "folder on this machine"),
        ({"label_noise": 0.1, "split": "test"}, "train split only"),
        ({"label_noise": 2}, "less than or equal to 1"),
        ({"source": "images:/nowhere"}, "is not a folder"),
        ({"source": "table:/nowhere/*.csv"}, "there is no such file"),
        ({"source": "npy:/nowhere"}, "holds neither X.npy nor X_train.npy"),
    ],
)
def test_wrong_settings_say_what_to_do(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        make(**{"output": str(tmp_path / "out"), **settings})
    assert not (tmp_path / "out").exists()


def test_default_output_is_named_after_the_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data.csv").write_text("a,label\n1,2\n")
    assert make(limit=3).output == "corpus/digits"
    assert make(source="table:my data.csv").output == "corpus/my-data"
    assert make(source=f"table:{tmp_path}/*.csv").output == f"corpus/{tmp_path.name}"
    assert "'" not in make(source="table:my data.csv").next_command


def test_registry_names_are_the_documented_ones():
    assert sorted(SOURCES) == ["digits", "images", "npy", "table", "torchvision"]


# --- torchvision ----------------------------------------------------------------------------


def test_torchvision_set_without_files_or_classes(tmp_path):
    make(source="torchvision:FakeData", limit=3, output=str(tmp_path / "o"), layout="raw")
    table = pq.read_table(tmp_path / "o" / "train")
    assert table.num_rows == 3
    assert json.loads(table.schema.field("img").metadata[b"dataprune"])["shape"] == [224, 224, 3]
    about = json.loads((tmp_path / "o" / "corpus.json").read_text())
    assert about["class_names"] == [str(i) for i in range(10)]
    with pytest.raises(ConfigError, match="has only: train"):
        make(source="torchvision:FakeData", split="test", output=str(tmp_path / "p"))


@pytest.mark.parametrize("name", ["EuroSAT"])
def test_torchvision_file_sets_keep_the_files_bytes(name, tmp_path):
    files = {f"{name.lower()}/2750/{c}/{c}_{i}.png": png(i) for c in ("A", "B") for i in range(2)}
    folder_of(tmp_path, files)
    make(source=f"torchvision:{name}", root=str(tmp_path), output=str(tmp_path / "o"))
    rows = pq.read_table(tmp_path / "o" / "train").to_pylist()
    assert {r["img"]["path"]: r["img"]["bytes"] for r in rows} == files


# --- image folders --------------------------------------------------------------------------

HOSTILE = {
    "b cat/-rf.png": png(1),
    "b cat/a b\n'\"$(x).PNG": png(2),
    "b cat/ünï.png": png(3),
    b"b cat/bad\xff\xfe.png": png(4),
    "b cat/..hidden/../x;y.png": png(5),
    "a dog/deep/er/x.png": png(6),
    "a dog/corrupt.jpg": b"not a jpeg",
    "a dog/empty.png": b"",
}


def test_image_folder_copies_every_byte(tmp_path):
    root = folder_of(
        tmp_path / "in", {os.fsdecode(os.path.normpath(k)): v for k, v in HOSTILE.items()}
    )
    folder_of(root, {"b cat/Thumbs.db": b"x", "b cat/.DS_Store": b"x", "README.txt": b"x"})
    made = make(source=f"images:{root}", output=str(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out" / "train")
    assert sorted(v["bytes"] for v in table["img"].to_pylist()) == sorted(HOSTILE.values())
    paths = [v["path"] for v in table["img"].to_pylist()]
    assert len(set(paths)) == len(HOSTILE)
    assert "b cat/bad\\xff\\xfe.png" in paths
    assert "a dog/deep/er/x.png" in paths
    for row in table.to_pylist():
        assert row["label"] == (0 if row["img"]["path"].startswith("a dog/") else 1)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"]["names"] == ["a dog", "b cat"]
    assert made.notes == ("2 files left out: no image by their ending",)


def test_image_folder_with_splits(tmp_path):
    files = {f"{s}/{c}/{i}.png": png(i) for s in ("train", "val") for c in "ab" for i in range(3)}
    root = folder_of(tmp_path / "in", {**files, "val/z/9.png": png(9)})
    made = make(source=f"images:{root}", output=str(tmp_path / "out"), layout="tensor")
    assert made.splits == {"train": 6, "test": 7}
    ids = [pq.read_table(tmp_path / "out" / s)["id"].to_pylist() for s in ("train", "test")]
    assert sorted(ids[0] + ids[1]) == list(range(13))
    only = make(source=f"images:{root}", output=str(tmp_path / "two"), split="test")
    assert only.splits == {"test": 7}
    about = json.loads((tmp_path / "two" / "corpus.json").read_text())
    assert about["class_names"] == ["a", "b", "z"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"x.png": png(1)}, "one sub-folder of images per class"),
        ({"a/readme.txt": b"x"}, "holds no image in a class folder"),
    ],
)
def test_image_folder_without_images_is_refused(files, message, tmp_path):
    root = folder_of(tmp_path / "in", files)
    with pytest.raises(ConfigError, match=message):
        make(source=f"images:{root}", output=str(tmp_path / "out"))


def test_images_that_do_not_fit_an_array_layout_leave_the_folder_free(tmp_path):
    root = folder_of(tmp_path / "in", {"a/1.png": png(1), "a/2.png": png(2, (5, 5))})
    out = tmp_path / "out"
    with pytest.raises(BadDataError, match=r"a/2.png.*--layout image"):
        make(source=f"images:{root}", output=str(out), layout="raw", shard_rows=1)
    assert list(out.iterdir()) == []
    assert make(source=f"images:{root}", output=str(out), layout="image").made


def test_linked_folders_are_not_followed_in_circles(tmp_path):
    root = folder_of(tmp_path / "in", {"a/1.png": png(1)})
    (root / "a" / "loop").symlink_to(root)
    assert make(source=f"images:{root}", output=str(tmp_path / "o")).splits == {"train": 1}


# --- tables ---------------------------------------------------------------------------------

TEXTS = ['say "hi"', "NA", "", "null", "a,b", "line\nbreak", "ünï", " spaces ", "1.50", "true"]


def test_csv_text_is_untouched(tmp_path):
    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "text", "n"])
        writer.writerows([i % 2, text, i] for i, text in enumerate(TEXTS))
    made = make(source=f"table:{tmp_path}/x.csv", output=str(tmp_path / "o"))
    table = pq.read_table(tmp_path / "o" / "train")
    assert table["text"].to_pylist() == TEXTS
    assert table.schema.names == ["label", "text", "n", "id"]
    assert table.schema.field("n").type == pa.int64()
    assert made.next_command.endswith("/train --label label --features text,n --id-column id")


def test_tsv_quotes_are_text(tmp_path):
    lines = ['0\t"open quote', '1\the said "no"', "0\t''"]
    (tmp_path / "x.tsv").write_text("label\tsentence\n" + "\n".join(lines) + "\n")
    make(source=f"table:{tmp_path}/x.tsv", output=str(tmp_path / "o"))
    found = pq.read_table(tmp_path / "o" / "train")["sentence"].to_pylist()
    assert found == [line.split("\t")[1] for line in lines]


def test_a_late_surprise_widens_the_column(tmp_path, monkeypatch):
    small = partial(table_module._Scan, block_bytes=256)
    monkeypatch.setattr(table_module, "_Scan", small)
    rows = [f"{i},{i},,{i % 2}" for i in range(200)] + ["1.5,word,7,1"]
    (tmp_path / "x.csv").write_text("a,b,c,label\n" + "\n".join(rows) + "\n")
    make(source=f"table:{tmp_path}/x.csv", output=str(tmp_path / "o"))
    table = pq.read_table(tmp_path / "o" / "train")
    types = {name: str(table.schema.field(name).type) for name in "abc"}
    assert types == {"a": "double", "b": "string", "c": "int64"}
    assert table.num_rows == 201
    assert table["b"].to_pylist()[-2:] == ["199", "word"]
    assert table["a"].to_pylist()[-1] == 1.5


def test_a_row_may_be_longer_than_a_block(tmp_path):
    text = "long\n" * 1_500_000
    (tmp_path / "x.csv").write_text(f'text,label\na,1\n"{text}",2\nb,3\n')
    make(source=f"table:{tmp_path}/x.csv", output=str(tmp_path / "o"))
    assert pq.read_table(tmp_path / "o" / "train")["text"].to_pylist() == ["a", text, "b"]


def test_several_files_become_one_split(tmp_path):
    (tmp_path / "b.csv").write_text("x,label\n2.5,b\n")
    (tmp_path / "a.csv").write_text("x,label\n1,a\n2,\n")
    made = make(source=f"table:{tmp_path}/*.csv", output=str(tmp_path / "o"), split="test")
    assert made.splits == {"test": 3}
    rows = pq.read_table(tmp_path / "o" / "test").to_pylist()
    assert [(r["x"], r["label"], r["id"]) for r in rows] == [(1, "a", 0), (2, "", 1), (2.5, "b", 2)]
    (tmp_path / "c.csv").write_text("label,x\na,1\n")
    with pytest.raises(ConfigError, match="but the first file has"):
        make(source=f"table:{tmp_path}/*.csv", output=str(tmp_path / "p"))


def test_bad_tables_are_named(tmp_path):
    (tmp_path / "ragged.csv").write_text("x,label\n1,2\n1,2,3\n")
    with pytest.raises(BadDataError, match=r"ragged.csv.*Expected 2 columns, got 3"):
        make(source=f"table:{tmp_path}/ragged.csv", output=str(tmp_path / "o"))
    (tmp_path / "empty.csv").write_text("x,label\n")
    with pytest.raises(BadDataError, match="has no rows"):
        make(source=f"table:{tmp_path}/empty.csv", output=str(tmp_path / "o"))
    (tmp_path / "x.xlsx").write_text("x")
    with pytest.raises(ConfigError, match=r"must end in .csv, .tab, .tsv"):
        make(source=f"table:{tmp_path}/x.xlsx", output=str(tmp_path / "o"))
    (tmp_path / "y.csv").write_text("x,target\n1,2\n")
    with pytest.raises(ConfigError, match="'none', or one of: x, target"):
        make(source=f"table:{tmp_path}/y.csv", output=str(tmp_path / "o"))
    assert (
        "--label none"
        in make(
            source=f"table:{tmp_path}/y.csv", output=str(tmp_path / "o"), label="none"
        ).next_command
    )


def test_a_tables_own_id_is_kept(tmp_path):
    (tmp_path / "x.csv").write_text("id,label\nseven,1\nnine,0\n")
    make(source=f"table:{tmp_path}/x.csv", output=str(tmp_path / "o"))
    assert pq.read_table(tmp_path / "o" / "train")["id"].to_pylist() == ["seven", "nine"]


# --- arrays ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["raw", "tensor"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_exact(layout, order, tmp_path):
    rng = np.random.default_rng(1)
    x = np.asarray(rng.normal(size=(2100, 3, 2)).astype(np.float32), order=order)
    y = rng.integers(0, 4, 2100).astype(np.uint8)
    np.save(tmp_path / "X.npy", x)
    np.save(tmp_path / "y.npy", y)
    make(source=f"npy:{tmp_path}", output=str(tmp_path / "o"), layout=layout)
    table = pq.read_table(tmp_path / "o" / "train")
    column = table["x"].combine_chunks()
    if layout == "tensor":
        found = column.to_numpy_ndarray()
    else:
        found = np.frombuffer(b"".join(column.to_pylist()), np.float32).reshape(x.shape)
    np.testing.assert_array_equal(found, x)
    assert table["label"].to_pylist() == y.tolist()
    assert table.schema.field("label").type == pa.int64()


def test_array_files_with_splits_and_other_labels(tmp_path):
    for split, rows in (("train", 5), ("test", 3)):
        np.save(tmp_path / f"X_{split}.npy", np.ones((rows, 2), np.float32))
        np.save(tmp_path / f"y_{split}.npy", np.array(["a", "b", "a", "b", "a"][:rows]))
    assert make(source=f"npy:{tmp_path}", output=str(tmp_path / "o")).splits == {
        "train": 5,
        "test": 3,
    }
    assert pq.read_table(tmp_path / "o" / "test")["label"].to_pylist() == ["a", "b", "a"]


def test_pickles_and_misfits_are_refused(tmp_path):
    np.save(tmp_path / "X.npy", np.ones((3, 2)))
    with pytest.raises(ConfigError, match=r"y\.npy is missing"):
        make(source=f"npy:{tmp_path}", output=str(tmp_path / "o"))
    np.save(tmp_path / "y.npy", np.array([{}, 1, 2], object), allow_pickle=True)
    with pytest.raises(ConfigError, match="cannot be opened"):
        make(source=f"npy:{tmp_path}/X.npy", output=str(tmp_path / "o"))
    np.save(tmp_path / "y.npy", np.arange(4))
    with pytest.raises(ConfigError, match="must hold 3 labels"):
        make(source=f"npy:{tmp_path}", output=str(tmp_path / "o"))


# --- noise ----------------------------------------------------------------------------------


def test_noise_is_binomial_symmetric_and_seeded():
    ids = np.arange(100_000)
    codes = ids % 10
    noisy = flip(codes, ids, 10, 0.3, seed=5)
    moved = noisy != codes
    assert abs(moved.sum() - 30_000) < 5 * math.sqrt(100_000 * 0.3 * 0.7)
    steps = np.bincount((noisy - codes)[moved] % 10, minlength=10)
    assert steps[0] == 0
    assert np.all(np.abs(steps[1:] - moved.sum() / 9) < 5 * math.sqrt(moved.sum() / 9))
    np.testing.assert_array_equal(flip(codes[40:90], ids[40:90], 10, 0.3, seed=5), noisy[40:90])
    other = flip(codes, ids, 10, 0.3, seed=6) != codes
    assert abs((other & moved).sum() - 9_000) < 500


@given(st.integers(2, 12), st.floats(0, 1), st.integers(0, 2**63 - 1))
def test_noise_keeps_labels_valid(classes, share, seed):
    ids = np.arange(64)
    codes = ids % (classes + 1) - 1
    noisy = flip(codes, ids, classes, share, seed)
    assert noisy.max() < classes
    np.testing.assert_array_equal(noisy < 0, codes < 0)
    if share in (0, 1):
        np.testing.assert_array_equal(noisy != codes, (codes >= 0) & (share == 1))


def test_noisy_corpus_keeps_the_true_label_whatever_the_shards(tmp_path):
    settings = {"label_noise": 0.2, "seed": 3}
    make(output=str(tmp_path / "a"), **settings)
    make(output=str(tmp_path / "b"), shard_rows=100, row_group_rows=7, layout="raw", **settings)
    a, b = (pq.read_table(tmp_path / n / "train") for n in "ab")
    assert a["clean_label"].to_pylist() == load_digits().target.tolist()
    assert a["label"].to_pylist() == b["label"].to_pylist()
    moved = sum(
        x != y for x, y in zip(*(a[c].to_pylist() for c in ("label", "clean_label")), strict=True)
    )
    assert abs(moved - 359) < 5 * math.sqrt(1797 * 0.2 * 0.8)


def test_noise_in_a_table_uses_its_own_labels(tmp_path):
    (tmp_path / "x.csv").write_text("x,y\n" + "".join(f"{i},{'ab '[i % 3]}\n" for i in range(300)))
    make(source=f"table:{tmp_path}/x.csv", output=str(tmp_path / "o"), label="y", label_noise=1)
    rows = pq.read_table(tmp_path / "o" / "train").to_pylist()
    assert all(r["y"] != r["clean_label"] and r["y"] in "ab " for r in rows)
    assert list(rows[0]) == ["x", "y", "clean_label", "id"]
    (tmp_path / "f.csv").write_text("x,y\n1,1.5\n2,2.5\n")
    with pytest.raises(ConfigError, match="two known classes"):
        make(source=f"table:{tmp_path}/f.csv", output=str(tmp_path / "p"), label="y", label_noise=1)


# --- grouping -------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(1, 20), st.integers(1, 9), st.none() | st.integers(1, 60))
def test_groups_never_cross_shards(rows, shard_rows, group_rows, limit):
    total = rows if limit is None else min(rows, limit)
    samples = [Sample(b"x", i) for i in range(rows)]
    batches = [pa.record_batch({"x": range(i, min(i + 4, rows))}) for i in range(0, rows, 4)]
    by_sample = list(group_samples(samples, limit, shard_rows, group_rows))
    by_batch = list(group_batches(batches, limit, shard_rows, group_rows))
    assert [s.label for p in by_sample for s in p.rows] == list(range(total))
    assert [x for p in by_batch for x in p.rows["x"].to_pylist()] == list(range(total))
    assert [(p.shard, len(p)) for p in by_sample] == [(p.shard, len(p)) for p in by_batch]
    sizes = {}
    for piece in by_sample:
        assert len(piece) <= group_rows
        sizes[piece.shard] = sizes.get(piece.shard, 0) + len(piece)
    assert all(size == shard_rows for size in list(sizes.values())[:-1])


def test_large_images_end_a_row_group_early(monkeypatch):
    monkeypatch.setattr(rows_module, "GROUP_BYTES", 100)
    pieces = list(group_samples([Sample(b"x" * 60, 0)] * 5, None, 10, 1000))
    assert [len(p) for p in pieces] == [2, 2, 1]


def test_unknown_source_is_a_configuration_error():
    with pytest.raises(UnknownNameError):
        make(source="nope")
