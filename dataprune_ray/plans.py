"""What scoring workers are told, and what one fragment reports."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

import pyarrow as pa

from dataprune_ray import schema
from dataprune_ray.clock import Scoring, Spent
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import join
from dataprune_ray.io.rows import RowPlan
from dataprune_ray.metrics import METRICS, MetricOptions, model_needs
from dataprune_ray.models import ModelSpec
from dataprune_ray.space import MODEL, SpaceOptions


@dataclass(frozen=True)
class Judges:
    """Checkpoints that rows are scored with.

    ``models`` are independent ones, whose scores are averaged; ``trajectory`` those of one run in
    the order of time, which training dynamics look at.
    """

    models: tuple[str, ...] = ()
    trajectory: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """All of them, each once, the models first."""
        return tuple(dict.fromkeys((*self.models, *self.trajectory)))


@dataclass(frozen=True)
class Learning:
    """How the metric ``learned`` predicts another one.

    ``target`` is exact on a ``fraction`` of the rows. Two models are trained on these, each on the
    rows that the other judges; the other settings are those of their training.
    """

    target: str
    fraction: float
    epochs: int
    batch_size: int
    learning_rate: float
    memory_bytes: int
    num_gpus: float = 0.0


@dataclass(frozen=True)
class ScorePlan:
    """What every scoring actor is told."""

    rows: RowPlan
    model: ModelSpec
    judges: Judges
    metrics: tuple[str, ...]
    options: MetricOptions
    folder: str
    batch_size: int = 256
    precision: str = "auto"
    use_gpu: bool = False
    memory_share: float = 0.0  # of a GPU, that batches are sized to; 0: batch_size rows each
    space: SpaceOptions = field(default_factory=SpaceOptions)
    checksums: bool = False  # noted of the corpus's files, where they are cheap
    learning: Learning | None = None
    expressions: tuple[str, ...] = ()  # formulas of the metrics, added last

    @property
    def needs(self) -> frozenset[str]:
        """Everything that some metric needs of a model."""
        return model_needs((METRICS[name] for name in self.metrics), self.space.source)

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Metrics that look at the trajectory."""
        return tuple(name for name in self.metrics if METRICS[name].track is not None)

    @property
    def used(self) -> Judges:
        """The checkpoints that some metric looks at."""
        metrics = [METRICS[name] for name in self.metrics]
        models = self.judges.models if any(m.averaged and not m.learns for m in metrics) else ()
        if self.shows_features and not models:
            models = self.judges.models[:1]
        return Judges(models, self.judges.trajectory if self.dynamic else ())

    @property
    def shows_features(self) -> bool:
        """Whether the feature space is that of the first model."""
        return bool(self.placed) and self.space.source == MODEL

    @property
    def direct(self) -> tuple[str, ...]:
        """Metrics that the actors finish themselves."""
        return tuple(name for name in self.metrics if METRICS[name].fit is None)

    @property
    def fitted(self) -> tuple[str, ...]:
        """Metrics with a second stage over the corpus."""
        return tuple(name for name in self.metrics if METRICS[name].fit is not None)

    @property
    def temporary(self) -> dict[str, pa.DataType]:
        """Columns that the actors store for second stages alone, with their types."""
        fits = (METRICS[name].fit for name in self.fitted)
        read = {column for fit in fits if fit is not None for column in fit.columns}
        wide = pa.list_(pa.float32(), self.model.label.outputs)
        return {name: kind or wide for name, kind in schema.TEMPORARY.items() if name in read}

    @property
    def layout(self) -> pa.Schema:
        """Schema of what the actors write, temporary columns among it."""
        return self._layout(self.direct, self.temporary)

    @property
    def finished(self) -> pa.Schema:
        """Schema of a score file after all second stages."""
        return self._layout(self.metrics, {})

    def _layout(self, metrics: tuple[str, ...], temporary: dict[str, pa.DataType]) -> pa.Schema:
        grouped = self.rows.group is not None
        return schema.score_schema(self.rows.label.type, metrics, temporary, grouped=grouped)

    @property
    def placed(self) -> frozenset[str]:
        """Temporary columns that come from a row's place in the feature space."""
        return frozenset(schema.PLACED) & self.temporary.keys()

    @property
    def space_path(self) -> str:
        """Where the fitted space lies, hidden from Parquet readers by its name."""
        return join(self.folder, "_space.safetensors")

    @property
    def exact(self) -> ScorePlan:
        """The same with the predicted metric's target in its stead."""
        if self.learning is None:
            return self
        target = self.learning.target
        named = [target if METRICS[name].learns else name for name in self.metrics]
        return replace(self, metrics=tuple(dict.fromkeys(named)), learning=None)

    def path(self, fragment: Fragment) -> str:
        """The fragment's score file."""
        return join(self.folder, f"{fragment.name}.parquet")


@dataclass(frozen=True)
class FragmentCount:
    """What one scored fragment reports.

    ``spent`` are the seconds that it took, ``batch_rows`` the rows of a forward pass, and it is
    ``halved`` where memory did not suffice for more. A ``reused`` fragment, whose scores were there
    before, has none of these.
    """

    index: int
    rows: int
    bad: int
    members: tuple[str, ...] = ()
    reused: bool = False
    spent: Spent | None = None
    worker: str = ""
    batch_rows: int = 0
    halved: bool = False

    def to_json(self) -> str:
        """As text, for the way back from a worker."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FragmentCount:
        """What `to_json` made."""
        found = json.loads(text)
        spent = found.pop("spent")
        members = tuple(found.pop("members"))
        return cls(**found, members=members, spent=None if spent is None else Spent(**spent))


def scoring_of(counts: Iterable[FragmentCount]) -> Scoring | None:
    """How the scoring of these fragments went; None where all were scored before."""
    fresh = [count for count in counts if count.spent is not None]
    return Scoring.of(
        sum(count.rows for count in fresh),
        (count.worker for count in fresh),
        [count.spent for count in fresh if count.spent is not None],
        (count.batch_rows for count in fresh),
        halved=any(count.halved for count in fresh),
    )
