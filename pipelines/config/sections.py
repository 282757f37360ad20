"""Sections of a study file, as `read.load` returns them. `list settings` prints the docstrings of their keys."""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    model_validator,
)

from prunefront.choice import Quantisation
from prunefront.pipelines.config.bounds import Bounds
from prunefront.pipelines.journal.layout import ARTIFACTS
from prunefront.search.outcomes.constraints import ConstraintError, check_metrics
from prunefront.search.outcomes.measurement import ACCURACY, OBJECTIVES

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]


def _located(asked: object) -> Path | str:
    """Returns a path, or an S3 address as it stands, since pathlib would take one of its slashes."""
    if isinstance(asked, Path) or (isinstance(asked, str) and asked and "://" not in asked):
        return Path(asked)
    if not isinstance(asked, str) or not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/.+", asked):
        raise ValueError("should be a path or s3://bucket/key")
    return asked


def _places(asked: object) -> Path | str | tuple[Path | str, ...]:
    """Returns one place, or a tuple of them for a list."""
    if not isinstance(asked, list | tuple):
        return _located(asked)
    if not asked:
        raise ValueError("should be a path or s3://bucket/key, or a list of them")
    return tuple(_located(one) for one in asked)


def _plain(places: Path | str | tuple[Path | str, ...]) -> str | list[str]:
    return [str(one) for one in places] if isinstance(places, tuple) else str(places)


Places = Annotated[Path | str | tuple[Path | str, ...], PlainValidator(_places), PlainSerializer(_plain)]
"""A path or s3://bucket/key as a str, either perhaps with wildcards; or a tuple of them."""


def _multiples(asked: object) -> int | dict[str, int]:
    """Returns a number of at least 1, or a table of them."""
    if isinstance(asked, Mapping) and asked:
        return {str(pattern): _multiple(number, f" for {pattern!r}") for pattern, number in asked.items()}
    return _multiple(asked)


def _multiple(asked: object, where: str = "") -> int:
    whole = isinstance(asked, int) or (isinstance(asked, float) and asked.is_integer())
    if not whole:
        raise ValueError(
            f'should be an integer{where}, or a table of them such as {{ "*" = 8, "head*" = 1 }}'
        )
    assert isinstance(asked, int | float)
    if asked < 1:
        raise ValueError(f"should be greater than or equal to 1{where}")
    return int(asked)


Multiples = Annotated[int | dict[str, int], PlainValidator(_multiples)]
"""A number of at least 1, or a table from patterns to them."""


class Section(BaseModel):
    """A part of a study file: frozen, and closed, so that an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ModelSection(Section):
    """Trained network: its code and its weights."""

    factory: str
    """Name in the zoo (`prunefront list models`), `module:callable` that returns the nn.Module, or a network of an
    installed library: `timm:NAME`, `torchvision:NAME`, `hf:FOLDER` (docs/networks-of-libraries.md)."""
    options: dict[str, Any] = {}
    """Keyword arguments of the factory; for `hf`, settings of the config."""
    weights: Path | None = None
    """`.safetensors`, or a `.pt`, `.pth`, `.ckpt` or `.bin` checkpoint that holds a state dict, under whatever key and
    prefix; for `hf`, the folder of a transformers network. Without it, the study trains the network first, as [dense]
    says."""
    weights_key: str | None = None
    """State dict of `weights` to take if several fit, e.g. "ema", or "state_dict/student" for one behind a prefix."""
    license: str | None = None
    """Licence of the network, for the cards of networks made from it, e.g. "apache-2.0"."""
    rules: str | None = None
    """Module, or "folder/file.py" from the current folder, with channel rules of your own for operators that have none
    (docs/add-an-operator.md)."""
    initial: Path | None = None
    """Weights before training, for the control `lottery_ticket`. A study that trains the network knows them."""


class TaskSection(Section):
    """Task: what the loss is and how networks are judged; its first metric is the quality that the search sees."""

    name: str = "classification"
    """Name of a task (`prunefront list tasks`), or `module:callable` that returns one."""
    options: dict[str, Any] = {}
    """Options of the task, e.g. { metrics = ["macro_f1"] }."""

    @property
    def code(self) -> tuple[str, ...]:
        """Each `module:callable` that the task is or imports: itself, and options such as `decode` of `detection`."""
        return tuple(v for v in (self.name, *self.options.values()) if isinstance(v, str) and ":" in v)


class DataSection(Section):
    """Images and labels in three disjoint parts: train, validation (seen by the search), test (never seen by it)."""

    source: str = "digits"
    """`digits`, `parquet`, `folder`, `webdataset` (tar shards), or `module:callable` that returns
    `prunefront.pipelines.data.Splits`."""
    train: Places | None = None
    """Training images: a folder with one folder for each class, or parquet or tar files: here or s3://bucket/key, one,
    a list, or a pattern such as "data/train-*.parquet"."""
    test: Places | None = None
    """Test images in the same form; no step of the search sees them."""
    endpoint_url: str | None = None
    """Address of an S3 server that is not AWS. Credentials come from the environment, as boto3 reads them."""
    options: dict[str, Any] = {}
    """Keyword arguments of a `module:callable` source."""
    validation: Annotated[int, Field(ge=2)] | None = None
    """Number of training images, the last ones, that are set aside for the search. Default: a sixth (digits: 300)."""
    train_limit: Annotated[int, Field(ge=2)] | None = None
    """Number of training images that are used, the first ones. Default: all."""
    test_limit: Annotated[int, Field(ge=2)] | None = None
    """Number of test images that are used, the first ones. Default: all."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, for pixels scaled to [0, 1]. Default: computed from the training images."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""
    license: str | None = None
    """Licence of the images, for the cards of networks trained on them."""
    augment: Literal["none", "crop", "crop_flip"] = "crop"
    """Augmentation of training images: random shifts, and for `crop_flip` mirroring too."""
    padding: Annotated[int, Field(ge=0, le=64)] = 1
    """Width of the black border within which crops shift, in pixels."""

    image: str | None = None
    """Column of the images in parquet files. Default: `img` or `image`."""
    label: str | None = None
    """Column of the labels in parquet files, e.g. "fine_label". Default: `label`."""
    classes: Annotated[tuple[int | str, ...], Field(min_length=2)] | None = None
    """Labels, or names of class folders, in the order of the network's outputs, e.g. [1, 2, 3] where labels begin at 1.
    Default: integers as they are, texts and folders by name."""
    shuffle: bool | None = None
    """Put parquet rows into a fixed random order before validation is set aside, as rows sorted by class need it."""
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Height and width that images are brought to, in pixels: resized, then the centre cut out. Default: the size that
    they all have."""
    resize: Annotated[int, Field(ge=1, le=8192)] | None = None
    """Length that the shorter side is resized to before `size` is cut out. Default: 8/7 of `size` (224: 256)."""

    stream: bool | None = None
    """Decode images while they are used, by processes of their own, in place of all at once. Default: where all of them
    would take more than a quarter of the free memory (docs/data.md)."""
    loaders: Annotated[int, Field(ge=0, le=256)] | None = None
    """Number of processes that decode a stream for one worker; 0 = the worker itself. Default: 2,
    or 1 where there is one core."""
    cache_gb: Annotated[float, Field(ge=0)] | None = None
    """Most disk space for decoded images of a stream, which all workers of a machine share, in GB; 0 = none. Default: a
    tenth of what is free."""

    def places(self, key: str) -> tuple[Path | str, ...]:
        """Returns the places under `train` or `test`, as the study file names them."""
        asked: Path | str | tuple[Path | str, ...] | None = getattr(self, key)
        return () if asked is None else asked if isinstance(asked, tuple) else (asked,)

    @property
    def stored(self) -> bool:
        """True where images come from S3."""
        return any(isinstance(place, str) for key in ("train", "test") for place in self.places(key))

    @model_validator(mode="after")
    def _sides_that_go_together(self) -> Self:
        if self.resize is not None and (self.size is None or self.resize < self.size):
            raise ValueError(
                f"resize = {self.resize} needs a `size` of at most as many pixels, got {self.size}"
            )
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes must be different from each other")
        return self


class DenseSection(Section):
    """Training of the dense network, where it comes without weights."""

    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the training images."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate. A fifth of the steps rises to it, the rest falls to zero as a half cosine."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images per step."""


class SpaceSection(Section):
    """Search space: what may be cut from the network, and how units are ranked."""

    criteria: tuple[str, ...] = ("l1", "taylor", "bn_scale", "geometric_median")
    """Criteria that may rank the units of a group: `prunefront list criteria`. A group leaves out misfits.
    Within layers and for blocks criteria see weights alone: others do not rank there, and without any `l2` does."""
    per_group: dict[str, tuple[str, ...]] = {}
    """Criteria of single groups, e.g. { "layer1.0.conv1" = ["chip"] }. `prunefront inspect` names the groups."""
    bound: Literal["none", "redundancy"] = "none"
    """Upper bound of each group's ratio. `redundancy`: by the rank of its gradients."""
    max_ratio: Ratio = 0.9
    """Largest fraction of its units that a group may lose."""
    round_to: Multiples = 1
    """Divisor of every kept channel count. Or a table from patterns of group names, { "*" = 8, "head*" = 1 }: the most
    specific that fits counts (the group's own name, else the one with most characters beside wildcards), wherever it
    stands; a group that none fits has 1. `prunefront inspect` shows each group's."""
    frozen: tuple[str, ...] = ()
    """Modules that stay as they are, by path or pattern: "layer4.*"."""
    merged: tuple[Annotated[tuple[str, ...], Field(min_length=2)], ...] = ()
    """Groups that lose the same units, [["layer1.0.conv1", "layer1.1.conv1"]], of each set the first one's name: fewer
    choices to search. `prunefront inspect` names the groups; units of the others must be a multiple of the first's."""
    strict: bool = False
    """Refuse a network with an operator that has no channel rule. Otherwise only the channels that reach it stay."""
    calibration_images: Annotated[int, Field(ge=1)] = 1024
    """Number of training images for criteria that need data, and for batch-norm statistics after a cut."""
    repair: Literal["moments", "criterion", "none"] = "moments"
    """Fit of the weights that read what is cut. `moments`: least squares from moments of the calibration images, which
    are gathered once per study. `criterion`: what the criterion's paper does, nothing for most of them."""
    granularities: Annotated[tuple[str, ...], Field(min_length=1)] = ("channel",)
    """Units that may be removed: channels, blocks, and those within layers (`prunefront list granularities`)."""
    densities: Annotated[tuple[Ratio, ...], Field(min_length=1)] = (0.25, 0.5, 0.75)
    """Shares of its weights that a layer may keep, for granularities within layers."""
    whole: tuple[str, ...] = ()
    """Modules whose layers keep float weights and whole kernels. Their channels may still be removed."""


class QuantisationSection(Section):
    """Bit widths of weights and activations, searched together with what is cut."""

    bits: Annotated[tuple[Annotated[int, Field(ge=1, le=32)], ...], Field(min_length=1)] = (32,)
    """Bit widths that a layer's weights may have; 32 = float."""
    quantiser: str = "fixed_point"
    """Method that puts weights on fewer levels: `prunefront list quantisers`."""
    per_channel: bool = True
    """One scale for each output channel of a layer; false = one for the layer."""
    activations: Literal["none", "fixed_point", "dorefa", "xnor"] = "none"
    """Method that quantises the inputs of layers whose weights are quantised."""
    activation_bits: Annotated[int, Field(ge=1, le=16)] = 8
    """Bit width of these inputs."""

    @property
    def method(self) -> Quantisation:
        """Returns how weights and activations are quantised, whatever their bit widths."""
        return Quantisation(self.quantiser, self.per_channel, self.activations, self.activation_bits)


class ControlsSection(Section):
    """Controls: rivals of the front's networks, which say whether the method was worth it."""

    methods: tuple[str, ...] = ()
    """Controls to make: `prunefront list controls`."""
    networks: Annotated[int, Field(ge=1)] = 2
    """Number of networks of the front that get each control, spread over their MACs."""


class GoalSection(Section):
    """Goal of a study: the objectives that its search trades off, and the bounds that every network keeps."""

    objectives: tuple[str, ...] = ("accuracy", "macs", "size_bytes")
    """Values that the searcher is told. All are exact for a seed, so that a search can be repeated. `latency_ratio` and
    `latency_ms` are predictions from the study's latency table."""
    constraints: Bounds = ()
    """Bounds that every network of the front keeps, e.g. ["accuracy >= -1pt", "latency_ms <= 60%",
    "size_bytes <= 250kB"]. -1pt and 60% are relative to the dense network; in { macs = { high = 1e7 } } a number is the
    value itself."""

    @model_validator(mode="after")
    def _different_objectives(self) -> Self:
        if len(set(self.objectives)) != len(self.objectives):
            raise ValueError("objectives must be different from each other")
        return self


class SearchSection(Section):
    """First stage: how candidates are proposed, and when that ends."""

    searcher: str = "auto"
    """Method that proposes candidates: `prunefront list searchers`."""
    options: dict[str, Any] = {}
    """Options of the searcher, e.g. { population = 24 }."""
    candidates: Annotated[int, Field(ge=1)] = 64
    """Most architectures that are scored. They are not trained for it, except on `scoring.train_images`."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Candidates that may together gain less than `min_gain` of hypervolume before scoring stops; 0 = never stop."""
    min_gain: Annotated[float, Field(gt=0, lt=1)] = 0.001
    """Smallest gain that counts, as a share of the hypervolume."""


class StartSection(Section):
    """Starting points of the search: those of allocators, and what earlier studies found."""

    allocators: Annotated[tuple[str, ...], Field(min_length=1)] = ("uniform", "global_threshold")
    """Methods that share MACs out among groups for the starting points: `prunefront list allocators`."""
    seeds: Annotated[int, Field(ge=1)] | None = None
    """Number of starting points that allocators give. Default: a third of the candidates."""
    warm_start: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = ()
    """Artifact URIs of earlier studies of this network, e.g. "s3://bucket/prefix". Their scores are reused."""


class ScoringSection(Section):
    """First stage: how a candidate is scored."""

    train_images: Annotated[int, Field(ge=0)] = 0
    """Number of images that each candidate is trained on before it is scored; 0 = none. It starts from its parent's
    weights where there are such, and takes whole steps of training.batch_size, otherwise as [training] says."""
    validation_limit: Annotated[int, Field(ge=2)] | None = None
    """Number of validation images that candidates are scored on. Default: all."""

    @model_validator(mode="after")
    def _enough_for_batch_norms(self) -> Self:
        if self.train_images == 1:
            raise ValueError("train_images = 1 cannot train batch norms; set 0 for no training, or 2 or more")
        return self


LATER_TRAINING = ("optimizer", "schedule", "label_smoothing", "clip_norm", "ema", "mixup", "loop")
"""Keys of [training] that came later: at their defaults, training is what it was before them."""


class TrainingSection(Section):
    """Second stage: how the promising candidates are fine-tuned."""

    candidates: Annotated[int, Field(ge=0)] = 12
    """Number of scored candidates that are fine-tuned, best first."""
    epochs: Annotated[int, Field(ge=0)] = 2
    """Passes over the training images for each candidate; 0 = no training."""
    early_stopping: bool = False
    """Stop candidates that others of similar cost beat early: docs/decisions/0007-early-stopping.md."""
    eta: Annotated[int, Field(ge=2)] = 2
    """Ratio of one rung's epochs to the one before. One candidate in `eta` continues, and every unbeaten one."""
    procedure: str = "one_shot"
    """Method that cuts and trains a candidate: `prunefront list procedures`."""
    options: dict[str, Any] = {}
    """Options of the procedure, e.g. { rounds = 5 }."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.02
    """Learning rate of the first step; `schedule` says how it falls."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images per step."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Weight decay of convolutions and linear layers."""
    distill: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the dense network's soft targets in the loss; 0 = labels only."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Temperature of the soft targets."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of training. `auto` = the faster one on this machine, measured once per study."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser: SGD with Nesterov momentum 0.9, or AdamW, which wants a learning_rate near 0.001."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate: to zero as a half cosine or as a line, or not at all."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label that is spread over all classes in training. Of `classification` alone."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of all gradients together; longer ones are scaled down to it. Default: no limit."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of a moving average of the weights, e.g. 0.99, which is judged and kept in their place. Of
    procedure `one_shot` and float weights. Default: no average."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup, e.g. 0.2: pairs of samples are mixed by a share drawn from Beta(alpha, alpha). Of
    `classification` alone; 0 = none."""
    loop: str | None = None
    """Training loop in place of ours, under procedure `one_shot`: a name (`prunefront list loops`) or
    `module:callable` (docs/tasks.md). `options` are then the loop's."""

    @model_validator(mode="after")
    def _a_rung_before_the_end(self) -> Self:
        if self.early_stopping and self.epochs < 2:
            raise ValueError(
                f"early_stopping compares candidates after their first epoch, and epochs = {self.epochs} leaves "
                "nothing to stop; set epochs = 2 or more, or early_stopping = false"
            )
        return self


class MeasureSection(Section):
    """Latency measurement: runtime, batch, repeats and place."""

    runtime: str = "onnxruntime"
    """Runtime that networks are timed on: `prunefront list runtimes`."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Images per timed forward."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of a timed forward."""
    pairs: Annotated[int, Field(ge=10)] = 100
    """Number of pairs: candidate and dense network are timed in turn."""
    warmup: Annotated[int, Field(ge=0)] = 10
    """Number of untimed forwards of each network before timing."""
    device: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,99}$")] | None = None
    """Resource of the node that measures for all workers (docs/placement.md). Default: each worker measures where it
    runs."""
    latency_table: Path | None = None
    """Latency table, as `prunefront latency-table` makes it. Without it, the study measures one where latency is among
    objectives or constraints."""

    @model_validator(mode="after")
    def _a_device_of_ones_own(self) -> Self:
        if self.device in ("CPU", "GPU", "TPU", "memory", "object_store_memory"):
            raise ValueError(
                f"device = {self.device!r} is a resource that Ray gives nodes itself; let the device join with one of "
                "its own, such as --resources='{\"jetson\": 1}'"
            )
        return self


class TrackingSection(Section):
    """MLflow: the record of the study."""

    uri: str | None = None
    """Address of the tracking store. Default: `sqlite:///<folder>/mlflow.db`."""
    experiment: str = "prunefront"
    """Name of the MLflow experiment, which holds several studies."""


class ArtifactSection(Section):
    """Artifact store: where pruned networks are published."""

    uri: str | None = None
    """A folder or `s3://bucket/prefix`. Default: `<folder>/<name>/artifacts`."""
    endpoint_url: str | None = None
    """Address of an S3 server that is not AWS. Credentials come from the environment, as boto3 reads them."""
    huffman: bool = False
    """Huffman-code quantised weights where that is shorter (last step of Deep Compression)."""
    shared: bool = False
    """The folder `uri` lies on storage that all machines of the cluster see."""
    state: bool | None = None
    """Keep the study's state in the store too, so that `--resume` works from any machine. Default: true for S3."""
    pt2: bool = True
    """Write the networks of the front as exported torch programs too (model.pt2), about a second each.
    `prunefront export DIR --format pt2` makes one later."""

    @model_validator(mode="after")
    def _elsewhere(self) -> Self:
        if self.state and self.uri is None:
            raise ValueError(
                "state = true keeps the state beside the networks, which are in the study's own folder; set "
                "artifacts.uri to a place that other machines see"
            )
        return self


class ClusterSection(Section):
    """Workers: how much of the machine or the cluster a study takes."""

    workers: Annotated[int, Field(ge=1)] | None = None
    """Number of worker processes. Default: one for each CPU that Ray has."""
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    """CPUs and threads of each worker."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of each worker, or a share of one such as 0.25. Above 0, scoring and training run on the GPU; above 1, each
    training runs on all of them (docs/placement.md)."""
    processes_per_worker: Annotated[int, Field(ge=1)] | None = None
    """Processes that share each training, and the CPUs of its worker. Default: one for each GPU, or one."""
    score_seconds: Annotated[float, Field(gt=0)] | None = None
    """Longest time that scoring a candidate may take, in seconds; then it failed. Default: 50 times what the dense
    network takes, 2 minutes at least."""
    step_seconds: Annotated[float, Field(gt=0)] | None = None
    """Longest time of an epoch of a network, or of measuring and publishing it, in seconds; then it failed. Default: 50
    times what the dense network takes, 10 minutes at least."""

    @model_validator(mode="after")
    def _shares_are_of_one_gpu(self) -> Self:
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ValueError(
                f"gpus_per_worker = {self.gpus_per_worker:g} is neither a whole number of GPUs nor a share of one; "
                "give a whole number, or less than 1"
            )
        return self

    @model_validator(mode="after")
    def _a_device_for_each_process(self) -> Self:
        count, gpus, cpus = self.processes_per_worker, self.gpus_per_worker, self.cpus_per_worker
        if count is None:
            return self
        if gpus > 0 and count != max(1, gpus):
            raise ValueError(
                f"processes_per_worker = {count} with gpus_per_worker = {gpus:g}: each process has one GPU; leave "
                f"processes_per_worker out, or set gpus_per_worker = {count}"
            )
        if cpus % count:
            raise ValueError(
                f"cpus_per_worker = {cpus} cannot be shared by processes_per_worker = {count}; set cpus_per_worker = "
                f"{-(-cpus // count) * count}"
            )
        return self

    @property
    def processes(self) -> int:
        """Number of processes that share a training, with the default filled in."""
        return self.processes_per_worker or max(1, int(self.gpus_per_worker))

    @property
    def of_one_process(self) -> "ClusterSection":
        """Returns the section with a process of a worker as the worker: what scores candidates, each on one device."""
        count = self.processes
        if count == 1:
            return self
        update = {
            "workers": self.workers and self.workers * count,
            "cpus_per_worker": max(1, self.cpus_per_worker // count),
            "gpus_per_worker": self.gpus_per_worker / count,
            "processes_per_worker": None,
        }
        return self.model_copy(update=update)


class StudyConfig(Section):
    """A whole study. Only the entry points hold it (tests/test_architecture.py): everything below gets its sections."""

    name: Name
    """Name of the study, of its folder and of its MLflow run."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Random seed of the study."""
    folder: Path = Path("studies")
    """Folder of studies; this one keeps its state in `<folder>/<name>/`."""
    model: ModelSection
    task: TaskSection = TaskSection()
    data: DataSection = DataSection()
    dense: DenseSection = DenseSection()
    space: SpaceSection = SpaceSection()
    quantisation: QuantisationSection = QuantisationSection()
    goal: GoalSection = GoalSection()
    search: SearchSection = SearchSection()
    start: StartSection = StartSection()
    scoring: ScoringSection = ScoringSection()
    training: TrainingSection = TrainingSection()
    controls: ControlsSection = ControlsSection()
    measure: MeasureSection = MeasureSection()
    tracking: TrackingSection = TrackingSection()
    artifacts: ArtifactSection = ArtifactSection()
    cluster: ClusterSection = ClusterSection()

    @model_validator(mode="after")
    def _goal_of_the_default_task(self) -> Self:
        """The metrics of another task are known once it is made; those of a study that names none are known here."""
        if self.task == TaskSection():
            for name in self.goal.objectives:
                if name not in OBJECTIVES:
                    raise ValueError(
                        f"goal: {name!r} cannot be an objective; possible: {', '.join(OBJECTIVES)}"
                    )
            if ACCURACY.name not in self.goal.objectives:
                raise ValueError("goal: objectives must be different from each other and include 'accuracy'")
            try:
                check_metrics(self.goal.constraints, (ACCURACY,))
            except ConstraintError as error:
                raise ValueError(f"goal.constraints: {error}") from None
        return self

    @property
    def path(self) -> Path:
        """Folder of this study."""
        return self.folder / self.name

    @property
    def tracking_uri(self) -> str:
        """Address of MLflow's tracking store, with the default filled in."""
        return self.tracking.uri or f"sqlite:///{(self.folder / 'mlflow.db').absolute()}"

    @property
    def artifact_uri(self) -> str:
        """Address of the artifact store, with the default filled in."""
        uri = self.artifacts.uri or str(self.path / ARTIFACTS)
        # workers have other current folders
        return uri if "://" in uri else str(Path(uri).expanduser().absolute())

    @property
    def local_artifacts(self) -> str | None:
        """The folder of the artifact store; None where all machines see the store."""
        return None if "://" in self.artifact_uri or self.artifacts.shared else self.artifact_uri

    @property
    def keeps_state(self) -> bool:
        """True where the study's state goes to its artifact store, with the default filled in."""
        kept = self.artifacts.state
        return self.artifact_uri.startswith("s3://") if kept is None else kept

    def part(self, kind: type[T]) -> T:
        """Returns those sections and values of the study that are the fields of a frozen dataclass."""
        return kind(**{field.name: getattr(self, field.name) for field in fields(kind)})

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")
