"""Small corpora for the integration tests, and ways to write the same rows differently."""

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.datasets import load_digits

FACTORY = '''
import torch

class Odd(torch.nn.Module):
    """A linear model whose outputs overflow for images that start with a bright pixel."""
    def __init__(self, num_classes):
        super().__init__()
        self.linear = torch.nn.Linear(64, num_classes)
    def forward(self, x):
        x = x.flatten(1)
        out = self.linear(x)
        return torch.where(x[:, :1] > 0.9, torch.full_like(out, torch.inf), out)

def odd(num_classes):
    return Odd(num_classes)

def no_linear(num_classes):
    return torch.nn.Sequential(torch.nn.Conv2d(1, num_classes, 8), torch.nn.Flatten())
'''


def digit_rows(count=1797):
    """Pixels uint8 (count, 8, 8) and labels int64 (count,)."""
    digits = load_digits()
    return (digits.images[:count] * 15).astype(np.uint8), digits.target[:count].astype(np.int64)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def image_table(images, labels, ids=None):
    ids = range(len(images)) if ids is None else ids
    payloads = [{"bytes": png(image), "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table(
        {
            "img": pa.array(payloads, kind),
            "label": pa.array(labels),
            "id": pa.array(list(ids), pa.int64()),
        }
    )


def write_parquet(folder, table, files=1, group_rows=100):
    Path(folder).mkdir(parents=True, exist_ok=True)
    bounds = [len(table) * i // files for i in range(files + 1)]
    for index, (low, high) in enumerate(itertools.pairwise(bounds)):
        path = Path(folder) / f"{index:03d}.parquet"
        pq.write_table(table.slice(low, high - low), path, row_group_size=group_rows)
    return str(folder)


def write_tars(folder, table, files=2):
    Path(folder).mkdir(parents=True, exist_ok=True)
    rows = table.to_pylist()
    for index in range(files):
        with tarfile.open(Path(folder) / f"shard-{index}.tar", "w") as archive:
            for row in rows[index::files]:
                members = {
                    "png": row["img"]["bytes"],
                    "cls": str(row["label"]).encode(),
                    "json": json.dumps({"id": row["id"]}).encode(),
                }
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"sample{row['id']:06d}.{extension}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return str(folder)


def linear_checkpoint(path, images, labels, inputs=64, classes=10, steps=60):
    """A linear classifier trained for a moment, saved as the job's ``linear`` model."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(inputs, classes)
    optimiser = torch.optim.Adam(layer.parameters(), 0.05)
    x = torch.from_numpy(images.reshape(len(images), -1)).float() / 255
    y = torch.from_numpy(labels)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(layer(x), y).backward()
        optimiser.step()
    torch.save({"1.weight": layer.weight.detach(), "1.bias": layer.bias.detach()}, path)
    return str(path)
