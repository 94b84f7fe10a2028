"""Images in partitions: the same maps from every kind of place, failures as rows, nothing mixed and nothing lost."""

from __future__ import annotations

import io
import sys
import tarfile
from contextlib import nullcontext

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import call

import xai_abn
from xai_abn import cluster
from xai_abn.errors import ImageLoadError, InvalidInputError, OutputError, RunError, UnknownNameError
from xai_abn.integrations.partitions import PartitionExplainer, Question, explain_partitions, find_partitions
from xai_abn.models import zoo

METHODS = ["cam", "rise:masks=4"]


@pytest.fixture(autouse=True)
def without_processes(monkeypatch, tmp_path, gap_net):
    """Do the work of Ray's processes in this one, in an empty folder, and know the small model as ``small``."""
    monkeypatch.setattr(cluster, "connected", nullcontext)
    monkeypatch.setattr(cluster, "available", lambda device: 2)
    monkeypatch.setattr(cluster, "spread", lambda make, items, processes, device: map(make(), items))
    monkeypatch.setitem(zoo.models, "small", lambda: gap_net)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def contents():
    """The bytes of five PNG images, by name."""
    rng, found = np.random.default_rng(0), {}
    for number in range(5):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(file, "PNG")
        found[f"{number}.png"] = file.getvalue()
    return found


@pytest.fixture
def folder(contents, tmp_path):
    """A folder with the images, and what is no image."""
    for name, content in {**contents, "notes.txt": b"", ".hidden/0.png": b""}.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "images"


@pytest.fixture
def question(gap_net):
    return Question(lambda device: gap_net, METHODS)


def tar_of(contents):
    """A tar file of images with labels beside them, as WebDataset has them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in contents.items():
            for member, data in ((name, content), (name.replace(".png", ".cls"), b"3")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def parquet_of(column):
    file = io.BytesIO()
    pq.write_table(pa.table({"image": column, "id": list(range(len(column)))}), file, row_group_size=2)
    return file.getvalue()


def maps(output, method):
    """Return the maps of a method as one array, without those of failures."""
    table = pd.dataset(output).to_table(filter=pd.field("error").is_null())
    return table[f"{method}_map"].combine_chunks().to_numpy_ndarray()


def put(place, content):
    with fsspec.open(place, "wb") as file:
        file.write(content)


@pytest.mark.parametrize("kind", ["folder", "glob", "memory", "bytes", "hugging face", "addresses", "tar", "mixed"])
def test_every_place_gives_the_maps_of_a_plain_call(kind, contents, folder, question, gap_net, tmp_path):
    """Folder, glob, another file system, Parquet with bytes, Hugging Face's images or addresses, and WebDataset."""
    paths, values = [str(folder / name) for name in contents], list(contents.values())
    for name, content in contents.items():
        put(f"memory://bucket/images/{name}", content)
    there = [f"memory://bucket/images/{name}" for name in contents]
    cells = {"bytes": values, "addresses": there, "hugging face": [{"bytes": v, "path": None} for v in values]}
    numbered = [f"#{number}" for number in range(5)]
    if kind in cells:
        put(str(tmp_path / "set.parquet"), parquet_of(cells[kind]))
    put(str(tmp_path / "set.tar"), tar_of(contents))
    places, sources = {
        "folder": ([str(folder)], paths),
        "glob": (["images/*.png"], paths),
        "memory": (["memory://bucket/images"], [name.replace("memory://", "memory:///") for name in there]),
        **{name: (["set.parquet"], [str(tmp_path / "set.parquet") + number for number in numbered]) for name in cells},
        "tar": (["set.tar"], [f"{tmp_path / 'set.tar'}#{name}" for name in contents]),
        "mixed": (["set.tar", *paths], [*(f"{tmp_path / 'set.tar'}#{name}" for name in contents), *paths]),
    }[kind]
    made = explain_partitions(places, "maps.parquet", question, size=3)
    assert (made.images, made.failures) == (len(sources), [])
    table = pq.read_table("maps.parquet")
    assert table["source"].to_pylist() == sources
    expected = xai_abn.explain(gap_net, paths, METHODS) * (2 if kind == "mixed" else 1)
    assert table["label"].to_pylist() == [one["cam"].label for one in expected]
    assert table["target"].to_pylist() == [one["cam"].target for one in expected]
    np.testing.assert_allclose(table["probability"], [one["cam"].probability for one in expected], rtol=1e-4)
    for method in METHODS:
        np.testing.assert_allclose(maps("maps.parquet", method), [one[method].map for one in expected], rtol=1e-3)


def test_maps_are_tensors_to_arrow_and_lists_to_others(folder, question):
    """The canonical type of Arrow with the shape; as Parquet alone, a list of floats."""
    explain_partitions([str(folder)], "maps.parquet", question)
    field = pq.read_table("maps.parquet").schema.field("cam_map")
    assert (field.type.extension_name, field.type.shape) == ("arrow.fixed_shape_tensor", [8, 8])
    assert pq.ParquetFile("maps.parquet/part-00000.parquet").schema.column(4).path == "cam_map.list.element"


def test_failures_are_rows(contents, folder, question, tmp_path):
    """An image, a cell, an address or a whole file that cannot be read is a row with the reason; the rest goes on."""
    (folder / "2.png").write_bytes(b"no image")
    content = list(contents.values())
    put("set.parquet", parquet_of([content[0], None, b"", content[3]]))
    put("files.parquet", parquet_of([str(folder / "0.png"), str(folder / "missing.png")]))
    put("short.tar", tar_of(contents)[:1600])
    put("none.tar", b"no tar" * 200)
    (folder / "3.png").unlink()
    (folder / "3.png").symlink_to(tmp_path / "nowhere")
    places = [str(folder), "set.parquet", "files.parquet", "short.tar", "none.tar"]
    made = explain_partitions(places, "maps.parquet", question)
    table = pq.read_table("maps.parquet")
    failed = {row["source"].split("/")[-1]: row for row in table.to_pylist() if row["error"] is not None}
    assert {name: row["error"] for name, row in failed.items()} == {
        source.split("/")[-1]: line for source, line in made.failures
    }
    reasons = {
        "2.png": "2.png: not an image",
        "set.parquet#1": "set.parquet#1: cannot be read (there is no image)",
        "set.parquet#2": "set.parquet#2: empty",
        "files.parquet#1": "files.parquet#1: cannot be read (No such file or directory)",
        "short.tar": "short.tar: damaged or cut short",
        "none.tar": "none.tar: damaged or cut short",
    }
    for name, reason in reasons.items():
        assert reason in failed[name]["error"], failed[name]["error"]
        assert failed[name]["label"] is failed[name]["target"] is None
        assert np.isnan(failed[name]["cam_map"]).all()
    assert failed.keys() - reasons.keys() <= {"3.png"}
    assert len(maps("maps.parquet", "cam")) == made.images - len(failed)


def test_a_row_for_each_target(folder, gap_net):
    """Methods that know no class repeat their map; a partition without any good image has the same columns."""
    (folder / "bad.png").write_bytes(b"")
    question = Question(lambda device: gap_net, ["cam", "center"], ["dog", 4])
    explain_partitions([str(folder / "0.png"), str(folder / "bad.png")], "maps.parquet", question, size=1)
    rows = pq.read_table("maps.parquet").to_pylist()
    assert [row["label"] for row in rows] == ["dog", "kite", None]
    assert rows[0]["cam_map"] != rows[1]["cam_map"]
    assert rows[0]["center_map"] == rows[1]["center_map"]
    with pytest.raises(UnknownNameError, match="unknown label 'cow'"):
        explain_partitions([str(folder)], "more.parquet", Question(lambda device: gap_net, ["cam"], ["cow"]))


def test_partitions_are_the_same_for_the_same_files(contents, folder, tmp_path):
    """They are cut by number, at other kinds of files, and change with a file; the results are left out."""
    put("images/a.parquet", parquet_of(list(contents.values())))
    put("images/b.tar", tar_of(contents))
    put("images/maps.parquet/part-00000.parquet", b"")
    found = find_partitions([str(folder)], 2, without="images/maps.parquet")
    names = [str(folder / f"{number}.png") for number in range(5)]
    table, archive = str(folder / "a.parquet"), str(folder / "b.tar")
    assert [(p.files, p.rows) for p in found] == [
        ((names[0], names[1]), (0, 0)),
        ((names[2], names[3]), (0, 0)),
        ((names[4],), (0, 0)),
        ((table,), (0, 2)),
        ((table,), (2, 4)),
        ((table,), (4, 5)),
        ((archive,), (0, 0)),
    ]
    assert find_partitions(["images"], 2, without=str(folder / "maps.parquet")) == found
    (folder / "2.png").write_bytes(b"other")
    changed = find_partitions([str(folder)], 2, without="images/maps.parquet")
    assert [now.key == before.key for now, before in zip(changed, found, strict=True)] == [True, False, *[True] * 5]


def test_a_run_is_resumed_or_refused(folder, question, gap_net, small_resnet, monkeypatch):
    """Only what is missing is made; another model, method, target, size or image is refused, and so is a surprise."""
    place = [str(folder)]
    explain_partitions(place, "maps.parquet", question, size=2)
    before = pq.read_table("maps.parquet")
    with pytest.raises(OutputError, match="holds maps; continue with --resume, or replace them with --overwrite"):
        explain_partitions(place, "maps.parquet", question, size=2)
    files = {name: (folder.parent / "maps.parquet" / name) for name in ("part-00000.parquet", "part-00001.parquet")}
    files["part-00001.parquet"].unlink()
    kept = files["part-00000.parquet"].stat().st_mtime_ns
    made = explain_partitions(place, "maps.parquet", question, size=2, resume=True)
    assert (made.partitions, made.known, made.images) == (3, 2, 2)
    assert files["part-00000.parquet"].stat().st_mtime_ns == kept
    assert pq.read_table("maps.parquet").equals(before)
    assert explain_partitions(place, "maps.parquet", question, size=2, resume=True).known == 3
    with monkeypatch.context() as patch:
        patch.setattr("xai_abn.pipeline.__version__", "0.0.1")
        with pytest.raises(RunError, match="other version;"):
            explain_partitions(place, "maps.parquet", question, size=2, resume=True)
    others = {
        "other methods;": (Question(lambda device: gap_net, ["cam"]), 2),
        "other targets;": (Question(lambda device: gap_net, METHODS, [1]), 2),
        "other model, preprocess, methods;": (Question(lambda device: small_resnet, METHODS), 2),
        "other column;": (Question(lambda device: gap_net, METHODS, column="photo"), 2),
        "other images or --partition;": (question, 3),
    }
    for message, (other, size) in others.items():
        with pytest.raises(RunError, match=message):
            explain_partitions(place, "maps.parquet", other, size=size, resume=True)
    (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
    with pytest.raises(RunError, match="other images or --partition"):
        explain_partitions(place, "maps.parquet", question, size=2, resume=True)
    explain_partitions(place, "maps.parquet", Question(lambda device: gap_net, ["cam"]), overwrite=True)
    assert sorted(path.name for path in files["part-00000.parquet"].parent.iterdir()) == [
        "_manifest.json",
        "part-00000.parquet",
    ]
    (folder.parent / "maps.parquet/_manifest.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        explain_partitions(place, "maps.parquet", question, resume=True)


def test_results_go_to_another_file_system(folder, question, gap_net):
    """Such as that of an object store, where a run is resumed, too."""
    output = "memory://results/maps.parquet"
    explain_partitions([str(folder)], output, question, size=2)
    fsspec.filesystem("memory").rm("/results/maps.parquet/part-00002.parquet")
    assert explain_partitions([str(folder)], output, question, size=2, resume=True).images == 1
    names = fsspec.filesystem("memory").ls("/results/maps.parquet", detail=False)
    assert sorted(name.split("/")[-1] for name in names) == [
        "_manifest.json",
        *(f"part-0000{n}.parquet" for n in range(3)),
    ]
    table = pq.read_table("/results/maps.parquet", filesystem=fsspec.filesystem("memory"))
    assert table["source"].to_pylist() == [str(folder / f"{number}.png") for number in range(5)]


def test_a_partition_that_ends_its_process_is_given_up(folder, question, gap_net):
    """After five tries, with its first image; a new command may try again."""
    explain_partitions([str(folder)], "maps.parquet", question)
    (partition,) = find_partitions([str(folder)], 500)

    class Killed(Exception):
        """Stands for the end of the process."""

    def die(_partition, _column):
        raise Killed
        yield

    process = PartitionExplainer(question, "maps.parquet", {}, question.identity(gap_net))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xai_abn.integrations.partitions._images", die)
        for _ in range(5):
            with pytest.raises(Killed):
                process(partition)
        with pytest.raises(RunError, match=r"part-00000, which begins with .*0\.png, has ended its process 5 times"):
            process(partition)
    (folder.parent / "maps.parquet/part-00000.parquet").unlink()
    assert explain_partitions([str(folder)], "maps.parquet", question, resume=True).images == 5


def test_machines_with_different_models_are_told(folder, question, gap_net, small_resnet):
    """A process that loads another model than the command did explains nothing."""
    with pytest.raises(RunError, match="the machines of the cluster differ in model, preprocess, methods;"):
        PartitionExplainer(
            question, "maps.parquet", {}, Question(lambda device: small_resnet, METHODS).identity(small_resnet)
        )


@pytest.mark.parametrize(
    ("places", "output", "error", "message"),
    [
        (["nowhere"], "maps.parquet", ImageLoadError, "nowhere: no such file or folder"),
        (["empty"], "maps.parquet", ImageLoadError, "empty: no images here"),
        (["sftq://bucket"], "maps.parquet", ImageLoadError, "sftq://bucket: cannot be read"),
        (
            ["set.parquet"],
            "maps.parquet",
            InvalidInputError,
            "no column 'image'; there are photo: choose with --column",
        ),
        (["bad.parquet"], "maps.parquet", ImageLoadError, "bad.parquet: cannot be read"),
        (["images"], "maps", InvalidInputError, "--output maps: with --engine ray it must end in .parquet"),
        (["images"], "set.parquet", OutputError, "set.parquet exists and was not created by xai-abn"),
        (["images"], "foreign.parquet", OutputError, "foreign.parquet exists and was not created by xai-abn"),
        (["images"], "set.parquet/maps.parquet", OutputError, "cannot write set.parquet/maps.parquet"),
        (["images"], "sftq://maps.parquet", OutputError, "cannot write sftq://maps.parquet"),
    ],
)
def test_mistakes_are_told(places, output, error, message, folder, question, tmp_path):
    """Before anything is explained."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign.parquet").mkdir()
    (tmp_path / "foreign.parquet/table.parquet").touch()
    pq.write_table(pa.table({"photo": [b""]}), "set.parquet")
    (tmp_path / "bad.parquet").write_text("no table")
    with pytest.raises(error) as raised:
        explain_partitions(places, output, question)
    assert message in raised.value.line


def explain(*arguments):
    return call("explain", *arguments, "--model", "small", "--engine", "ray")


def test_the_command_says_what_became_of_the_images(folder):
    """Numbers on standard output, failures on standard error and in the exit code."""
    (folder / "bad.png").write_bytes(b"")
    dog = ("--output", "maps.parquet", "--method", "cam", "--target", "dog", "--partition", 2)
    code, out, err = explain(folder, *dog)
    assert (code, err) == (1, f"xai-abn: {folder / 'bad.png'}: empty (0 bytes)\n")
    assert out.startswith("maps.parquet: 6 images in ")
    assert out.endswith("s by 2 processes, 1 failed\n")
    assert pq.read_table("maps.parquet")["label"].to_pylist() == ["dog"] * 5 + [None]
    code, _, err = explain(folder, *dog, "--resume")
    assert (code, err) == (0, "note: 3 of 3 partitions are done and are skipped\n")
    assert explain(folder, *dog, "--versus", "kite", "--overwrite")[0] == 1
    assert pq.read_table("maps.parquet")["label"].to_pylist() == ["dog rather than kite"] * 5 + [None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sheet"], "--sheet does not go with --engine ray, which draws nothing"),
        (["--boxes", 0.5], "--boxes does not go with --engine ray"),
        (["--json"], "--json does not go with --engine ray"),
        (["--colormap", "viridis"], "--colormap does not go with --engine ray"),
        (["--output", "maps"], "--output maps: with --engine ray it must end in .parquet"),
        (["--output", "m.parquet", "--method", "camm"], "did you mean 'cam'"),
        (["--partition", 0], "--partition"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, message, folder):
    """With one line."""
    code, _, err = explain(folder, *arguments)
    assert code == 2
    assert message in err


def test_other_engines_are_refused(folder):
    """An unknown one, and options of Ray without it."""
    assert "'dask' is not one of 'local', 'ray'" in " ".join(call("explain", folder, "--engine", "dask")[2].split())
    for option in (("--partition", 3), ("--processes", 2), ("--column", "jpg")):
        code, _, err = call("explain", folder, *option)
        assert (code, f"{option[0]} is an option of --engine ray" in err) == (2, True)


def test_without_ray_an_error_says_what_to_install(folder, monkeypatch):
    """Also where only a part of it is missing."""
    for name in ("ray.data", "fsspec"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            code, _, err = explain(folder, "--output", "maps.parquet")
            assert code == 2
            assert err.endswith("pip install 'xai-abn[ray]'\n")
