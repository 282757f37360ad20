"""What goes along with a job: what a study names by relative paths, its own modules, and nothing else."""

import os
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster import package
from prunefront.pipelines.cluster.package import (
    NEVER,
    RESULTS,
    Package,
    PackedSections,
    pack,
    results_folder,
)
from prunefront.pipelines.config.read import load

NETWORK = "def net(): ...\n"


def study(
    folder: Path, text: str = "", *, model: str = 'factory = "digits_cnn"', name: str = "s.toml"
) -> Path:
    """A study file. text: what comes after its [model] section; keys before it begin with `folder`."""
    top, rest = (text, "") if text.startswith("folder") else ("", text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f'name = "mine"\n{top}\n[model]\n{model}\n{rest}\n')
    return folder / name


def pack_file(file: Path, **more: Any) -> Package:
    """Packs a study file as `prunefront submit` does."""
    return pack(file, load(file, base=Path()).part(PackedSections), **more)


def put(path: Path, content: str | bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_study_of_built_in_parts_goes_alone(tmp_path: Path) -> None:
    put(tmp_path / "train.parquet")
    packed = pack_file(study(tmp_path), here=tmp_path)
    assert list(packed.files) == ["s.toml"] == [packed.study]
    assert (packed.name, packed.folder, packed.there) == ("mine", RESULTS, {})


@pytest.mark.parametrize("here", ["p", "p/conf", "."])
def test_relative_files_go_along_and_mean_the_same(tmp_path: Path, here: str) -> None:
    """Whatever folder it is sent from, so that a study that goes on finds the paths that it was started with."""
    project = tmp_path / "p"
    weights, table = put(project / "w.safetensors", b"weights"), put(project / "conf/t/latency.json", b"{}")
    file = study(
        project / "conf",
        '[measure]\nlatency_table = "t/latency.json"\n',
        model='factory = "digits_cnn"\nweights = "../w.safetensors"\ninitial = "/data/before.safetensors"',
    )
    packed = pack_file(file, here=tmp_path / here)
    assert set(packed.files) == {"conf/s.toml", "w.safetensors", "conf/t/latency.json"}
    assert packed.there == {"model.initial": "/data/before.safetensors"}
    packed.write(tmp_path / "job")
    there = load(tmp_path / "job" / packed.study)
    assert there.model.weights is not None
    assert there.measure.latency_table is not None
    assert there.model.weights.read_bytes() == weights.read_bytes()
    assert there.measure.latency_table.read_bytes() == table.read_bytes()


def test_modules_go_along_with_those_that_they_import(tmp_path: Path) -> None:
    put(tmp_path / "nets/big.py", "import torch, json\nfrom layers import block\nfrom nets import small\n")
    put(tmp_path / "nets/small.py", NETWORK)
    put(tmp_path / "layers/__init__.py", "def block():\n    import deep.down\n")
    put(tmp_path / "deep/down.py", "from prunefront.pipelines.data import Split\n")
    put(tmp_path / "data.py", "def parts(): ...\n")
    put(tmp_path / "prunefront/pipelines/data.py", "the cluster has it")
    for other in (
        "other.py",
        "nets/images.parquet",
        "nets/__pycache__/big.pyc",
        "nets/.venv/x.py",
        "json.py",
    ):
        put(tmp_path / other)
    file = study(tmp_path / "conf", '[data]\nsource = "data:parts"\n', model='factory = "nets.big:net"')
    assert set(pack_file(file, here=tmp_path).files) == {
        "s.toml",
        "nets/big.py",
        "nets/small.py",
        "layers/__init__.py",
        "deep/down.py",
        "data.py",
    }


@pytest.mark.parametrize("rules", ["own/turns.py", "own.turns"])
def test_channel_rules_of_ones_own_go_along(tmp_path: Path, rules: str) -> None:
    put(tmp_path / "own/turns.py", "import helpers\n")
    put(tmp_path / "helpers.py", "import numpy\n")
    put(tmp_path / "other.py")
    file = study(tmp_path, model=f'factory = "digits_cnn"\nrules = "{rules}"')
    assert set(pack_file(file, here=tmp_path).files) == {"s.toml", "own/turns.py", "helpers.py"}


def test_what_a_task_imports_goes_along(tmp_path: Path) -> None:
    put(tmp_path / "boxes.py", "import losses\n")
    put(tmp_path / "losses.py")
    task = '[task]\nname = "detection"\noptions = { decode = "boxes:decode", loss = "losses:focal", classes = 3 }\n'
    assert set(pack_file(study(tmp_path, task), here=tmp_path).files) == {"s.toml", "boxes.py", "losses.py"}


def test_modules_called_like_our_folders_go_along(tmp_path: Path) -> None:
    put(tmp_path / "search/models.py", "import utils.layers\nimport models\nimport prunefront.search\n")
    put(tmp_path / "pipelines/__init__.py", "from pruners import images\n")
    put(tmp_path / "pruners/images.py", "from prunefront.pipelines.data import Split\n")
    put(tmp_path / "utils/layers.py")
    put(tmp_path / "models.py")
    for ours in ("__init__.py", "errors.py", "search/__init__.py"):
        put(tmp_path / "prunefront" / ours, "in a checkout, and not at hand in a job")
    file = study(tmp_path, '[data]\nsource = "pipelines:made"\n', model='factory = "search.models:make"')
    assert set(pack_file(file, here=tmp_path).files) == {
        "s.toml",
        "search/models.py",
        "pipelines/__init__.py",
        "pruners/images.py",
        "utils/layers.py",
        "models.py",
    }


def test_the_package_of_the_cluster_is_not_replaced(tmp_path: Path) -> None:
    """Its folder in a checkout holds links, which do not go along: half of it would hide the whole."""
    put(tmp_path / "prunefront/__init__.py")
    for place in ("prunefront", "prunefront/__init__.py"):
        with pytest.raises(
            PrunefrontError, match=r"--include prunefront.*: the cluster has a prunefront of its own"
        ):
            pack_file(study(tmp_path), include=[Path(place)], here=tmp_path)


def test_included_files_go_along_where_they_are(tmp_path: Path) -> None:
    put(tmp_path / "labels/a.json")
    put(tmp_path / "labels/.git/config")
    put(tmp_path / "names.txt")
    packed = pack_file(study(tmp_path), include=[Path("labels"), tmp_path / "names.txt"], here=tmp_path)
    assert set(packed.files) == {"s.toml", "labels/a.json", "names.txt"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[data]\nsource = "parquet"\ntrain = "d/a.parquet"\n', "s3://bucket/a.parquet"),
        ('[data]\nsource = "folder"\ntrain = "/d/a"\ntest = "images"\n', "data.test = 'images' lies beside"),
        ('[data]\nsource = "folder"\ntrain = "~/a"\n', "data.train = '~/a' lies beside"),
        ('[artifacts]\nuri = "made"\n', "artifacts.uri = 'made' would lie in the job's folder"),
        ('[tracking]\nuri = "sqlite:///m.db"\n', "sqlite:////absolute/path.db"),
        ('[start]\nwarm_start = ["studies/a/artifacts"]\n', "start.warm_start = 'studies/a/artifacts'"),
        ('[measure]\nlatency_table = "t.json"\n', "measure.latency_table: there is no file"),
    ],
)
def test_what_would_not_be_found_there_or_be_lost_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PrunefrontError) as refused:
        pack_file(study(tmp_path, text), here=tmp_path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("place", ["../x", ".", "gone", ".git", "studies/a", "a/.venv"])
def test_what_never_goes_along_cannot_be_included(tmp_path: Path, place: str) -> None:
    put(tmp_path / "x")
    here = tmp_path / "p"
    for name in (".git/config", "studies/a/b", "a/.venv/c"):
        put(here / name)
    with pytest.raises(PrunefrontError, match="--include"):
        pack_file(study(here), include=[Path(place)], here=here)


def test_a_module_that_is_no_python_is_named(tmp_path: Path) -> None:
    put(tmp_path / "net.py", "def net(:\n")
    with pytest.raises(PrunefrontError, match=r"net\.py is no valid Python: .*line 1"):
        pack_file(study(tmp_path, model='factory = "net:net"'), here=tmp_path)


def test_two_files_cannot_be_one(tmp_path: Path) -> None:
    put(tmp_path / "net.py", NETWORK)
    file = study(tmp_path / "conf", model='factory = "net:net"\nweights = "net.py"')
    put(tmp_path / "conf/net.py")
    with pytest.raises(PrunefrontError, match=r"would both be net\.py"):
        pack_file(file, here=tmp_path)


def test_too_many_bytes_are_refused_with_the_largest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "LIMIT_BYTES", 3 << 20)
    put(tmp_path / "w.pt", bytes(2 << 20))
    file = study(tmp_path, model='factory = "digits_cnn"\nweights = "w.pt"')
    assert pack_file(file, here=tmp_path).size_bytes > 2 << 20
    put(tmp_path / "big.bin", bytes(5 << 19))
    with pytest.raises(PrunefrontError, match=r"4\.5 MiB along.*big\.bin \(2\.5 MiB\), w\.pt \(2\.0 MiB\)"):
        pack_file(file, include=[Path("big.bin")], here=tmp_path)


@pytest.mark.parametrize(
    ("text", "asked", "there"),
    [
        ("", None, "~/prunefront/studies"),
        ('folder = "results"', None, "~/prunefront/studies"),
        ('folder = "/data/studies"', None, "/data/studies"),
        ('folder = "~/mine"', "/other", "/other"),
        ('folder = "~/mine"', None, "~/mine"),
    ],
)
def test_results_are_kept_where_the_job_does_not_take_them_along(
    tmp_path: Path, text: str, asked: str | None, there: str
) -> None:
    assert results_folder(asked, pack_file(study(tmp_path, text), here=tmp_path)) == there


def test_results_beside_the_job_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PrunefrontError, match="--folder studies is relative"):
        results_folder("studies", pack_file(study(tmp_path), here=tmp_path))


parts = st.sampled_from(["a", "b", "mine", ".git", ".venv", "venv", "studies", "__pycache__", ".hidden"])
leaves = st.sampled_from(["net.py", "x.py", "train.parquet", "image.png", "w.bin", ".env"])
trees = st.sets(
    st.builds(lambda folders, leaf: (*folders, leaf), st.lists(parts, max_size=3), leaves), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(tree=trees, include=st.booleans())
def test_whatever_lies_around_only_what_is_asked_for_goes(
    tmp_path_factory: pytest.TempPathFactory, tree: set[tuple[str, ...]], include: bool
) -> None:
    here = tmp_path_factory.mktemp("tree")
    for place in tree:
        put(here.joinpath(*place), "import a, b\n" if place[-1].endswith(".py") else b"data")
    put(here / "a/keep.txt")
    file = study(here, model='factory = "mine.net:net"')
    packed = pack_file(file, include=[Path("a")] if include else [], here=here)
    for place, source in packed.files.items():
        path = PurePosixPath(place)
        assert not any(part.startswith(".") or part in NEVER for part in path.parts)
        assert ".." not in path.parts
        assert source.is_file()
        assert os.path.samefile(source, here / place)
        named = place == packed.study or (include and path.parts[0] == "a")
        assert named or path.suffix == ".py", f"{place} was not asked for"
