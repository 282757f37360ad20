"""`StudyConfig`: a study file in TOML, checked before anything is spent."""

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    ValidationError,
    model_validator,
)

from prunefront.choice import Quantisation
from prunefront.errors import PrunefrontError
from prunefront.pipelines.journal.layout import ARTIFACTS
from prunefront.search.outcomes.constraints import Bound, ConstraintError, check_together
from prunefront.search.outcomes.constraints import parse as parse_bound
from prunefront.search.outcomes.measurement import OBJECTIVES

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
MOST_BYTES = 64 << 10
"""Of a study file."""
DEEPEST = 32
"""Levels of tables and lists within a study file."""
_DOTS = re.compile(rf"(?:[^\s.=\[\]{{}},#]{{1,64}}[ \t]*\.[ \t]*){{{DEEPEST},}}")
Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]


class ConfigError(PrunefrontError):
    """The study file asks for something that there is not."""


def _located(asked: object) -> Path | str:
    """A path, or an S3 address as it stands: pathlib would take one of its slashes."""
    if isinstance(asked, Path) or (isinstance(asked, str) and asked and "://" not in asked):
        return Path(asked)
    if not isinstance(asked, str) or not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/.*[^/]", asked):
        raise ValueError("should be a path or s3://bucket/key")
    return asked


Located = Annotated[Path | str, PlainValidator(_located), PlainSerializer(str, return_type=str)]
"""A path, or s3://bucket/key as a str."""


class Section(BaseModel):
    """Frozen, and closed: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ModelSection(Section):
    """Where the trained network comes from."""

    factory: str
    """A zoo name (`prunefront list models`) or `module:callable` that returns the nn.Module."""
    options: dict[str, Any] = {}
    """Keyword arguments of the factory."""
    weights: Path | None = None
    """`.safetensors`, or a `.pt`/`.pth` state dict. Without it the network is trained first, see [dense]."""
    license: str | None = None
    """Of the network, for the cards of what is made of it, e.g. "apache-2.0"."""
    initial: Path | None = None
    """Its weights before it was trained, for the control `lottery_ticket`; known where the study trains it."""


class DataSection(Section):
    """Images and labels. Three disjoint parts: train, validation (what the search sees), test (what it never sees)."""

    source: str = "digits"
    """`digits`, `parquet`, `folder`, or `module:callable` that returns `prunefront.pipelines.data.Splits`."""
    train: Located | None = None
    """Training images: a parquet file, here or s3://bucket/key, or a folder with one folder for each class."""
    test: Located | None = None
    """Held-out images in the same form; no search step sees them."""
    endpoint_url: str | None = None
    """Of an S3 server that is not AWS. Credentials come from the environment, as boto3 reads them."""
    options: dict[str, Any] = {}
    """Keyword arguments of a `module:callable` source."""
    validation: Annotated[int, Field(ge=2)] | None = None
    """How many training images, the last ones, are set aside for the search. Default: a sixth (digits: 300)."""
    train_limit: Annotated[int, Field(ge=2)] | None = None
    """Use only the first so many training images."""
    test_limit: Annotated[int, Field(ge=2)] | None = None
    """Use only the first so many test images."""
    mean: tuple[float, ...] | None = None
    """Per channel, for pixels scaled to [0, 1]. Default: computed from the training part."""
    std: tuple[float, ...] | None = None
    """As `mean`."""
    license: str | None = None
    """Of the images, for the cards of what is trained on them."""
    augment: Literal["none", "crop", "crop_flip"] = "crop"
    """What training images go through: random shifts, and for `crop_flip` mirroring."""
    padding: Annotated[int, Field(ge=0, le=64)] = 1
    """Pixels of black border that the random crop plays in."""

    @property
    def stored(self) -> bool:
        """Whether images come from S3."""
        return isinstance(self.train, str) or isinstance(self.test, str)


class DenseSection(Section):
    """How the dense network is trained when it comes without weights."""

    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the training images."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Its peak; a fifth of the steps rises to it, the rest falls to zero as a half cosine."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images per step."""


class SpaceSection(Section):
    """What may be cut."""

    criteria: tuple[str, ...] = ("l1", "taylor", "bn_scale", "geometric_median")
    """What may rank the units of a group (`prunefront list criteria`); where one does not fit, it is left out."""
    per_group: dict[str, tuple[str, ...]] = {}
    """Other criteria for single groups, e.g. { "layer1.0.conv1" = ["chip"] }; `prunefront inspect` names the groups."""
    bound: Literal["none", "redundancy"] = "none"
    """`redundancy`: no group loses more than its gradients say is redundant (methods: `prunefront list allocators`)."""
    max_ratio: Ratio = 0.9
    """No group loses more than this fraction of its units."""
    round_to: Annotated[int, Field(ge=1)] = 1
    """Kept channel counts are multiples of this."""
    frozen: tuple[str, ...] = ()
    """Modules that stay as they are."""
    calibration_images: Annotated[int, Field(ge=1)] = 1024
    """Training images for criteria that need data, and for re-estimating batch norm statistics."""
    granularities: Annotated[tuple[str, ...], Field(min_length=1)] = ("channel",)
    """What a unit may be: `channel`, `block`, and those within single layers (`prunefront list granularities`)."""
    densities: Annotated[tuple[Ratio, ...], Field(min_length=1)] = (0.25, 0.5, 0.75)
    """What share of its weights a layer may keep, for granularities within layers."""
    bits: Annotated[tuple[Annotated[int, Field(ge=1, le=32)], ...], Field(min_length=1)] = (32,)
    """Word lengths of a layer's weights."""
    quantiser: str = "fixed_point"
    """How words shorter than 32 bits become numbers: `prunefront list quantisers`."""
    per_channel: bool = True
    """One scale for each output channel of a layer, or one for the layer."""
    activations: Literal["none", "fixed_point", "dorefa", "xnor"] = "none"
    """What quantises the inputs of layers whose weights have short words."""
    activation_bits: Annotated[int, Field(ge=1, le=16)] = 8
    """Word length of these inputs."""
    whole: tuple[str, ...] = ()
    """Modules in which no layer is changed within: its weights stay float, its kernels stay whole; channels may go."""

    @property
    def quantisation(self) -> Quantisation:
        """How quantised weights and inputs become numbers."""
        return Quantisation(self.quantiser, self.per_channel, self.activations, self.activation_bits)


def _bounds(asked: object) -> object:
    """What a study file asks for, as bounds: a list of texts, one text, or { name = { low = …, high = … } }."""
    if isinstance(asked, Mapping):
        return tuple(bound for name, sides in asked.items() for bound in _sides(str(name), sides))
    found = (asked,) if isinstance(asked, str) else asked
    if not isinstance(found, list | tuple) or not all(isinstance(b, str | Bound) for b in found):
        raise ValueError("should be a list of bounds such as ['accuracy >= -1pt', 'latency_ms <= 60%']")
    return tuple(parse_bound(b) if isinstance(b, str) else b for b in found)


def _sides(name: str, sides: object) -> list[Bound]:
    if not isinstance(sides, Mapping) or not sides:
        raise ValueError(f"{name} should have a low or a high side, e.g. {{ high = 1e7 }}")
    for side, value in sides.items():
        if side not in ("low", "high"):
            near = get_close_matches(str(side), ("low", "high"), n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown key '{name}.{side}'; {hint}known here: low, high")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(
                f"{name}.{side} should be a number, got {value!r}; '60%' and the like go into a list of texts"
            )
    return [Bound(name, side, float(value)) for side, value in sides.items()]


def _checked(asked: object) -> object:
    try:
        bounds = _bounds(asked)
        check_together(cast(Sequence[Bound], bounds))
    except ConstraintError as error:
        raise ValueError(str(error)) from None
    return bounds


Bounds = Annotated[
    tuple[InstanceOf[Bound], ...],
    BeforeValidator(_checked),
    PlainSerializer(lambda bounds: [str(b) for b in bounds], return_type=list[str]),
]
"""In JSON, the texts that the bounds are read from."""


class SearchSection(Section):
    """Which candidates are scored."""

    searcher: str = "auto"
    """`prunefront list searchers`."""
    candidates: Annotated[int, Field(ge=1)] = 64
    """How many different architectures are scored, without training but for `train_images`; at the most."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Score no more when so many candidates together raised the hypervolume by less than `min_gain`; 0 = go on."""
    min_gain: Annotated[float, Field(gt=0, lt=1)] = 0.001
    """As a share of the hypervolume."""
    train_images: Annotated[int, Field(ge=0)] = 0
    """On so many each candidate is trained before it is scored, from its parent's weights where there are such; 0 = on
    none. In whole steps of training.batch_size at the most, by [training] else."""
    objectives: tuple[str, ...] = ("accuracy", "macs", "size_bytes")
    """What the searcher is told. All of it is exact for a seed, so that a search can be repeated; of `latency_ratio`
    and `latency_ms`, a prediction from the study's latency table."""
    constraints: Bounds = ()
    """Bounds that a network of the front keeps, e.g. ["accuracy >= -1pt", "latency_ms <= 60%", "size_bytes <= 250kB"],
    -1pt and 60% beside the dense network; a number in { macs = { high = 1e7 } } is the value itself."""
    options: dict[str, Any] = {}
    """The searcher's own options, e.g. { population = 24 }."""
    warm_start: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = ()
    """Artifact URIs of earlier studies of this network, e.g. "s3://bucket/prefix", whose scores are known here."""
    allocators: Annotated[tuple[str, ...], Field(min_length=1)] = ("uniform", "global_threshold")
    """What shares the MACs out among the groups for the starting points: `prunefront list allocators`."""
    seeds: Annotated[int, Field(ge=1)] | None = None
    """How many starting points, by allocators. Default: a third of the candidates."""
    validation_limit: Annotated[int, Field(ge=2)] | None = None
    """Score on this many validation images only."""

    @model_validator(mode="after")
    def _known_objectives(self) -> Self:
        for name in self.objectives:
            if name not in OBJECTIVES:
                raise ValueError(f"{name!r} cannot steer the search; possible: {', '.join(OBJECTIVES)}")
        if self.train_images == 1:
            raise ValueError("train_images = 1 cannot train batch norms; set 0 for no training, or 2 or more")
        if len(set(self.objectives)) != len(self.objectives) or "accuracy" not in self.objectives:
            raise ValueError("objectives must be different from each other and include 'accuracy'")
        return self


class TrainingSection(Section):
    """What happens to the candidates that deserve training."""

    candidates: Annotated[int, Field(ge=0)] = 12
    """How many of the scored ones are fine-tuned, best first."""
    epochs: Annotated[int, Field(ge=0)] = 2
    """Passes over the training images, for each candidate; 0 = no training."""
    early_stopping: bool = False
    """Stop candidates that others of like cost beat after 1, eta, eta² … epochs: docs/how-to-choose-a-searcher.md."""
    eta: Annotated[int, Field(ge=2)] = 2
    """How far apart these rungs are; one candidate in so many goes on from each, and all that are unbeaten."""
    procedure: str = "one_shot"
    """How a candidate gets from the dense network to its own: `prunefront list procedures`."""
    options: dict[str, Any] = {}
    """The procedure's own options, e.g. { rounds = 5 }."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.02
    """At the first step; it falls to zero as a half cosine."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images per step."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """On weights of convolutions and linear layers."""
    distill: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the dense network's soft targets in the loss; 0 = labels only."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """How soft the soft targets are."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: whichever trains faster on this machine, measured once per study."""

    @model_validator(mode="after")
    def _a_rung_before_the_end(self) -> Self:
        if self.early_stopping and self.epochs < 2:
            raise ValueError(
                f"early_stopping compares candidates after their first epoch, and epochs = {self.epochs} leaves "
                "nothing to stop; set epochs = 2 or more, or early_stopping = false"
            )
        return self


class MeasureSection(Section):
    """How a network is timed."""

    runtime: str = "onnxruntime"
    """`prunefront list runtimes`."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Images per timed forward."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of a timed forward."""
    pairs: Annotated[int, Field(ge=10)] = 100
    """How many times candidate and dense network are run in turn."""
    warmup: Annotated[int, Field(ge=0)] = 10
    """Untimed forwards of each before."""
    device: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,99}$")] | None = None
    """The node that measures for all, by the resource with which it joined the cluster: docs/placement.md. Default:
    each worker measures where it is."""
    latency_table: Path | None = None
    """Made by `prunefront latency-table`. Without it, one is measured where latency is among objectives or
    constraints."""

    @model_validator(mode="after")
    def _a_device_of_ones_own(self) -> Self:
        if self.device in ("CPU", "GPU", "TPU", "memory", "object_store_memory"):
            raise ValueError(
                f"device = {self.device!r} is a resource that Ray gives nodes itself; let the device join with one of "
                "its own, such as --resources='{\"jetson\": 1}'"
            )
        return self


class TrackingSection(Section):
    """Where MLflow records the study."""

    uri: str | None = None
    """Tracking store. Default: `sqlite:///<folder>/mlflow.db`."""
    experiment: str = "prunefront"
    """MLflow's name for a collection of studies."""


class ArtifactSection(Section):
    """Where pruned networks are published."""

    uri: str | None = None
    """A folder or `s3://bucket/prefix`. Default: `<folder>/<name>/artifacts`."""
    endpoint_url: str | None = None
    """Of an S3 server that is not AWS. Credentials come from the environment, as boto3 reads them."""
    huffman: bool = False
    """Store codes of short words by their frequency, where that is shorter (Deep Compression's last step)."""
    shared: bool = False
    """The folder lies on storage that all machines of the cluster see."""
    state: bool | None = None
    """Keep the study's state there, too, so that `--resume` goes on from any machine. Default: where it is S3."""

    @model_validator(mode="after")
    def _elsewhere(self) -> Self:
        if self.state and self.uri is None:
            raise ValueError(
                "state = true keeps the state beside the networks, which are in the study's own folder; set "
                "artifacts.uri to a place that other machines see"
            )
        return self


class ClusterSection(Section):
    """How much of the machine or the cluster a study takes."""

    workers: Annotated[int, Field(ge=1)] | None = None
    """Worker processes. Default: one for each CPU that Ray has."""
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    """CPUs and threads of each worker."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of each worker, or a share of one such as 0.25; above 0, scoring and training run there."""

    @model_validator(mode="after")
    def _shares_are_of_one_gpu(self) -> Self:
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ValueError(
                f"gpus_per_worker = {self.gpus_per_worker:g}: a share is of one GPU; give a whole number, or less "
                "than 1"
            )
        return self


class StudyConfig(Section):
    """One study. Each section goes to the code it concerns; nothing below reads the whole."""

    name: Name
    """Of the study, and of its folder and its MLflow run."""
    controls: tuple[str, ...] = ()
    """What the front's networks are compared with: `prunefront list controls`."""
    controlled: Annotated[int, Field(ge=1)] = 2
    """How many networks of the front each control is made for, spread over their MACs."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Everything that is drawn follows from it."""
    folder: Path = Path("studies")
    """Where the study keeps its state: `<folder>/<name>/`."""
    model: ModelSection
    data: DataSection = DataSection()
    dense: DenseSection = DenseSection()
    space: SpaceSection = SpaceSection()
    search: SearchSection = SearchSection()
    training: TrainingSection = TrainingSection()
    measure: MeasureSection = MeasureSection()
    tracking: TrackingSection = TrackingSection()
    artifacts: ArtifactSection = ArtifactSection()
    cluster: ClusterSection = ClusterSection()

    @property
    def path(self) -> Path:
        """The study's own folder."""
        return self.folder / self.name

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking store, with the default filled in."""
        return self.tracking.uri or f"sqlite:///{(self.folder / 'mlflow.db').absolute()}"

    @property
    def artifact_uri(self) -> str:
        """The artifact store, with the default filled in."""
        uri = self.artifacts.uri or str(self.path / ARTIFACTS)
        # workers have other current folders
        return uri if "://" in uri else str(Path(uri).expanduser().absolute())

    @property
    def keeps_state(self) -> bool:
        """Whether the study's state goes to its artifact store, with the default filled in."""
        kept = self.artifacts.state
        return self.artifact_uri.startswith("s3://") if kept is None else kept

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def settings() -> dict[str, str]:
    """Every key of a study file, dotted -> its default and what it means; for `prunefront list settings`."""
    return _settings(StudyConfig, "")


def _settings(section: type[BaseModel], prefix: str) -> dict[str, str]:
    lines: dict[str, str] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            lines |= _settings(field.annotation, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else json.dumps(field.default, default=str)
        lines[f"{prefix}{name}"] = f"{field.description} [{default}]".removesuffix(" [null]")
    return lines


def load(path: Path, *, base: Path | None = None) -> StudyConfig:
    """Reads and checks a study file. base: what relative paths in it are relative to; None = the file's folder.

    Raises ConfigError: one line that says where, what was asked, what is possible.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{path} has more than the {MOST_BYTES >> 10} KiB that a study file may have")
        text = content.decode()
        if _DOTS.search(text):  # tomllib takes the square of their number
            raise ConfigError(f"{path} names a key of more than {DEEPEST} parts")
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"there is no study file {path}; see examples/digits.toml for one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML: it is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and what dates and numbers raise that cannot be
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    return parse(data, source=str(path), base=path.parent if base is None else base)


def parse(data: Mapping[str, Any], *, source: str, base: Path) -> StudyConfig:
    """Checks a study given as nested dicts; `base` is what its relative paths are relative to."""
    if fault := _not_plain(data, ()):
        raise ConfigError(f"{source}: {fault}")
    try:
        config = StudyConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {'; '.join(_explain(e, data) for e in error.errors())}") from None
    return _anchor(config, base)


def _anchor(config: StudyConfig, base: Path) -> StudyConfig:
    def at(path: Any) -> Any:
        return base / path if isinstance(path, Path) else path

    return config.model_copy(
        update={
            "model": config.model.model_copy(
                update={"weights": at(config.model.weights), "initial": at(config.model.initial)}
            ),
            "data": config.data.model_copy(
                update={"train": at(config.data.train), "test": at(config.data.test)}
            ),
            "measure": config.measure.model_copy(update={"latency_table": at(config.measure.latency_table)}),
        }
    )


def _not_plain(value: object, where: tuple[str, ...]) -> str | None:
    """What of a study could not be kept in study.json, or is nothing to show on a terminal; None where all is well."""
    name = repr(".".join(where))
    if len(where) > DEEPEST:
        return f"{name:.80} is nested too deeply; at most {DEEPEST} levels are possible"
    if isinstance(value, Mapping):
        found = (_not_plain(str(k), where) or _not_plain(v, (*where, str(k))) for k, v in value.items())
        return next(filter(None, found), None)
    if isinstance(value, list | tuple):
        return next(filter(None, (_not_plain(v, (*where, str(i))) for i, v in enumerate(value))), None)
    if isinstance(value, str | Path):
        text = str(value)
        return (
            None if text.isprintable() else f"{name} holds a character that cannot be printed: {text!r:.80}"
        )
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return f"{name} is a number beyond 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} = {value}; numbers must be finite"
    if value is None or isinstance(value, bool | int | float | Bound):
        return None
    return f"{name} is a {type(value).__name__}; possible are texts, numbers, flags, lists and tables of them"


def _explain(error: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        asked = str(error["loc"][-1])
        near = get_close_matches(asked, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown key {where!r}; {hint}known here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{where!r} is missing"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    return f"{where or 'the study'} = {error['input']!r:.200}: {message}" if where else message


def _known_keys(location: Sequence[int | str]) -> list[str]:
    """The keys of the section at `location`; annotations are followed from StudyConfig downwards."""
    section: Any = StudyConfig
    for part in location:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
