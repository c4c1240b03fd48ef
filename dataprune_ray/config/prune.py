"""The stages of a prune run: what is read, which model judges, what is kept, where it goes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from dataprune_ray.config.base import OPERATIONAL, Job, Stage, parse_limit
from dataprune_ray.config.trials import GateConfig, QualityConfig, TrainConfig, TuneConfig

#: The strategy that is chosen by trial, and the share of noise that is estimated.
AUTO = "auto"
#: A share of the rows, or "auto" for the estimated share of wrong labels.
NoiseShare = Annotated[float, Field(ge=0, lt=1)] | Literal["auto"]


class CorpusConfig(Stage):
    """What is read and how its columns are understood."""

    input: str = Field("", description="corpus root: a file, a folder or a pyarrow.fs URI")
    format: Literal["auto", "parquet", "webdataset"] = Field(
        "auto", description="storage format; auto looks at the file names"
    )
    features: tuple[str, ...] = Field(
        (), description="feature columns (several: tabular); default: recognised"
    )
    label: str | None = Field(
        None, description="label column; 'none' for an unlabelled corpus; default: recognised"
    )
    id_column: str | None = Field(
        None, description="unique column that identifies a row; default: file and position"
    )
    group_column: str | None = Field(
        None,
        description="column of text, integers or booleans whose values have the quotas of "
        "class_balanced and random_balanced; default: the label",
    )
    modality: Literal["auto", "image", "tensor", "tabular", "text"] = Field(
        "auto", description="what the features are; auto recognises it and says so"
    )
    task: Literal["auto", "classification", "regression"] = Field(
        "auto", description="what the label is; auto: regression for a floating-point label"
    )
    num_classes: int | None = Field(
        None,
        ge=1,
        description="labels outside 0..N-1 are bad rows; outputs of the model where there "
        "is no label; default: from the corpus",
    )
    image_size: int | None = Field(
        None, ge=1, description="resize the short side and centre-crop to this many pixels"
    )
    mean: tuple[float, ...] = Field(
        (), description="per-channel mean subtracted from pixels in [0, 1]"
    )
    std: tuple[float, ...] = Field(
        (), description="per-channel standard deviation that divides them"
    )
    max_pixels: int = Field(
        64_000_000, ge=1, description="an image with more pixels is a bad row, never decoded"
    )
    fragment_rows: int | None = Field(
        None, ge=1, description="target rows of one unit of work; default: from the corpus"
    )

    @field_validator("std")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(v <= 0 for v in value):
            raise ValueError("every standard deviation must be positive")
        return value


class ModelConfig(Stage):
    """Which model judges the rows, and how a proxy is trained where no checkpoint is given."""

    model: str = Field(
        "auto",
        description="mlp[:H1,H2,…], linear, small_cnn, torchvision:NAME or package.module:factory",
    )
    checkpoint: tuple[str, ...] = Field(
        (), description="state dict files (.pt, .pth, .th, .safetensors); default: train a proxy"
    )
    trajectory: tuple[str, ...] = Field(
        (),
        description="checkpoints of one training run in the order of time, for training-dynamics "
        "metrics; the last is the model of the others where no checkpoint is given; default: the "
        "first proxy's",
    )
    dynamics_checkpoints: int = Field(
        20, ge=2, description="epochs of the first proxy at most that training dynamics look at"
    )
    proxy_epochs: int = Field(10, ge=1, description="epochs of the proxy run")
    proxy_seeds: int = Field(3, ge=1, description="independently seeded proxy runs")
    proxy_fraction: float = Field(
        1.0, gt=0, le=1, description="share of the rows (by hash) the proxy is trained on"
    )
    proxy_batch_size: int = Field(128, ge=1, description="rows per proxy update")
    proxy_learning_rate: float = Field(1e-3, gt=0, description="Adam's step size")
    proxy_memory_mb: int = Field(
        2048, ge=1, description="decoded rows held by one proxy run; more rows are sampled by hash"
    )
    proxy_workers: int = Field(
        0, ge=0, description="Ray Train workers per proxy run; 0: one task, no worker group"
    )

    @property
    def given(self) -> tuple[str, ...]:
        """The checkpoints that judge the rows; none where proxies are trained."""
        return self.checkpoint or self.trajectory[-1:]

    @property
    def kept_epochs(self) -> tuple[int, ...]:
        """Epochs of a proxy run, from 1, whose weights training dynamics look at; evenly spaced."""
        count = min(self.dynamics_checkpoints, self.proxy_epochs)
        return tuple(-(-self.proxy_epochs * (i + 1) // count) for i in range(count))


class ScoreConfig(Stage):
    """What is computed per row."""

    metric: tuple[str, ...] = Field(
        ("el2n",),
        min_length=1,
        description="importance metrics, or formulas of them such as "
        "'rank(el2n) + 0.5 * rank(entropy)'; the first decides the cut",
    )
    gradient_weight: float = Field(0.5, ge=0, description="weight of grad_norm in loss_grad")
    loss_weight: float = Field(0.5, ge=0, description="weight of loss in loss_grad")
    space: str = Field(
        "model",
        min_length=1,
        description="features of the data distribution: model (penultimate, of the first model), "
        "inputs (as encoded) or a column of floats, such as embeddings",
    )
    survey_rows: int = Field(
        50_000, ge=1, description="rows, sampled by hash, that the feature space is fitted to"
    )
    clusters: int | None = Field(
        None, ge=1, description="clusters of the feature space; default: the number of classes"
    )
    density: Literal["gmm", "kmeans", "knn"] = Field(
        "gmm", description="density model of surprisal, inverse_density and information"
    )
    duplicate_epsilon: float | None = Field(
        None,
        ge=0,
        le=1,
        description="redundancy compares with rows that are kept: those of a cosine up to 1 minus "
        "this to all kept before; default: --dedup, or 0.05",
    )
    whiten: bool = Field(
        True,
        description="decorrelate the features whose cosines redundancy, k_center and "
        "facility_location compare: in a classifier's plain ones all rows of a class look alike",
    )
    surprisal_weight: float = Field(0.6, ge=0, description="weight of surprisal in information")
    mutual_information_weight: float = Field(
        0.4, ge=0, description="weight of mutual_information in information"
    )
    learned_metric: str = Field("aum", description="metric that the metric learned predicts")
    learned_fraction: float = Field(
        0.2, gt=0, le=1, description="share of the rows, by hash, that learned scores exactly"
    )
    dynamics_window: int = Field(
        10, ge=2, description="checkpoints in a window of dyn_unc, dual and tdds"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the forward pass; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="rows per forward pass; auto: on a GPU doubled while that is faster and fits, "
        "on a CPU by the size of a row; halved where memory runs out",
    )
    actors: int | None = Field(None, ge=1, description="scoring actors; default: from the cluster")
    num_gpus: float = Field(0.0, ge=0, description="GPUs per scoring actor; fractions share one")
    max_bad_rows: str = Field(
        "1%", description="bad rows allowed: a share (1%% or 0.01) or a number of rows"
    )

    @field_validator("batch_size", mode="before")
    @classmethod
    def _unset(cls, value: object) -> object:
        return "auto" if value is None else value  # as a settings file leaves it open

    @field_validator("num_gpus")
    @classmethod
    def _whole(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError("above 1, an actor takes a whole number of GPUs")
        return value

    @field_validator("max_bad_rows", mode="before")
    @classmethod
    def _limit(cls, value: object) -> str:
        text = str(value).replace("%%", "%")
        parse_limit(text)
        return text


class SelectConfig(Stage):
    """Which rows are kept."""

    strategy: str = Field("ratio", description="selection strategy; auto: chosen by trial")
    keep: float = Field(0.5, ge=0, le=1, description="fraction kept (not pruned)")
    threshold: float | None = Field(
        None,
        allow_inf_nan=True,  # the strategy says which numbers it can use
        description="score cutoff of --strategy threshold",
    )
    max_fraction: float = Field(
        0.5, ge=0, le=1, description="cutoff of --strategy max_fraction, as a share of the maximum"
    )
    keep_end: Literal["auto", "high", "low"] = Field(
        "auto", description="end of the score that is kept; auto: the metric's own"
    )
    beta: NoiseShare = Field(
        0.0,
        description="share of the rows cut off as noise at the kept end by window, stratified and "
        "weighted, and of each class by class_balanced; auto: as --quality estimates it",
    )
    noise_cut: NoiseShare = Field(
        0.0,
        description="share of the rows cut as noise before any strategy, by --noise-metric; auto: "
        "as --quality estimates it",
    )
    noise_metric: str | None = Field(
        None,
        description="metric of --noise-cut; default: the first that knows where noise gathers",
    )
    dedup: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="before any strategy drop rows whose redundancy is above 1 minus this; "
        "default: none",
    )
    weight_power: float = Field(
        1.0,
        ge=0,
        le=100,
        description="power of the scores as weights of --strategy weighted; 0: all alike",
    )
    bins: int = Field(50, ge=1, description="strata of --strategy stratified, of equal width")
    class_floor: int = Field(
        0, ge=0, description="rows kept at least per class or group where balanced"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of ties, random choices and the proxy")

    @property
    def estimates_noise(self) -> bool:
        """Whether a share is the one that the quality pass estimates."""
        return AUTO in (self.beta, self.noise_cut)


class WriteConfig(Stage):
    """Where the result goes and in what pieces."""

    output: str = Field("", description="output directory or URI: empty, new, or an earlier run's")
    part_bytes: int = Field(
        256 * 2**20, ge=1, description="target size of an output part, in source bytes"
    )
    part_rows: int | None = Field(None, ge=1, description="target rows of a part instead of bytes")
    overwrite: bool = Field(False, description="replace an earlier run's output")
    resume: bool = Field(True, description="continue an unfinished run with the same settings")


class RunConfig(Stage):
    """How the job is run."""

    address: str | None = Field(None, description="Ray cluster to join; default: a local Ray")
    dry_run: bool = Field(False, description="score a sample and print what a run would do")
    sample_rows: int = Field(2_000, ge=1, description="rows that --dry-run scores")
    plan_cpus: tuple[int, ...] = Field(
        (), description="--dry-run also says what clusters of these numbers of CPUs would take"
    )
    plan_gpus: int | None = Field(
        None, ge=1, description="GPUs of each cluster in --plan-cpus; default: as here"
    )
    cpu_hour_price: float | None = Field(
        None, ge=0, description="dollars for a CPU for an hour; --dry-run then shows dollars"
    )
    gpu_hour_price: float | None = Field(None, ge=0, description="the same for a GPU")
    list: bool = Field(False, description="print every metric and strategy, and when not to use it")
    status: str | None = Field(
        None, description="an output directory: say what is done of its run and what is left"
    )
    explain: tuple[str, ...] = Field(
        (),
        description="rows of the finished run in --output, as FILE:ROW, FILE:KEY or id: say why "
        "each was kept or dropped",
    )
    baseline: str | None = Field(
        None, description="output of an earlier run: score only files that are new or changed"
    )
    max_drift: float | None = Field(
        None, ge=0, description="PSI since --baseline beyond which the job ends with exit code 3"
    )
    scores: str | None = Field(
        None, description="score table of an earlier run: cut again without touching a model"
    )
    with_scores: tuple[str, ...] = Field(
        (),
        description="score tables of other runs over the same corpus, as NAME=DIR with DIR a "
        "scores/ folder or an output; formulas name their metrics NAME.metric",
    )

    @field_validator("plan_cpus")
    @classmethod
    def _some(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(cpus < 1 for cpus in value):
            raise ValueError("a cluster has one CPU at least")
        return value


class PruneConfig(Job):
    """Everything one prune run depends on."""

    corpus: CorpusConfig = CorpusConfig()
    model: ModelConfig = ModelConfig()
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    quality: QualityConfig = QualityConfig()
    tune: TuneConfig = TuneConfig()
    train: TrainConfig = TrainConfig()
    gate: GateConfig = GateConfig()
    write: WriteConfig = WriteConfig()
    run: RunConfig = RunConfig()

    def decisive(self) -> dict[str, Any]:
        """The fields that the result depends on, by their flat names.

        How trials are run decides nothing where the strategy is given.
        """
        unused = set(OPERATIONAL)
        if self.select.strategy != AUTO:
            for stage in (TuneConfig, TrainConfig, GateConfig):
                unused |= stage.model_fields.keys()
        return {k: v for k, v in self.flat().items() if k not in unused}
