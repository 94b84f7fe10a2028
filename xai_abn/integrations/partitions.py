"""Images by the million, in partitions: from folders, Parquet, WebDataset and object stores to maps in Parquet."""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from pathlib import PurePosixPath
from time import perf_counter
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from xai_abn import cluster
from xai_abn.errors import (
    ImageLoadError,
    InvalidInputError,
    OutputError,
    RunError,
    UnsupportedModelError,
    XaiAbnError,
)
from xai_abn.explainers import Explainer, make_explainers
from xai_abn.explanation import Explanation
from xai_abn.files import key_of
from xai_abn.images.loading import EXTENSIONS, is_hidden
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.targets import Target
from xai_abn.pipeline import Result, dependencies, explain_images

#: Name of the manifest in a folder of maps. Readers of Parquet skip files whose names begin with an underscore.
MANIFEST = "_manifest.json"
#: Rows of a Parquet file that are read at once.
_ROWS = 64
#: Facts of a file that change with its content, as file systems of fsspec call them.
_FACTS = ("size", "mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "md5Hash")
_TARS = (".tar", ".tar.gz", ".tgz")
#: How often a partition may be begun before its images are taken for what ends the process.
_TRIES = 5


@dataclass(frozen=True)
class Partition:
    """A part of the images, explained by one process at a time and saved as one file.

    Attributes:
        name: of its file, without ending.
        files: addresses of image files, or of one Parquet file or one tar file.
        rows: the first and the end of the rows of a Parquet file.
        key: of everything that can be known of the files without reading them.
    """

    name: str
    files: tuple[str, ...]
    rows: tuple[int, int] = (0, 0)
    key: str = ""


@dataclass(frozen=True)
class Made:
    """What became of a partition.

    Attributes:
        images: their number.
        failures: images with the line that says what is wrong.
    """

    images: int
    failures: list[tuple[str, str]]


@dataclass
class Summary:
    """Summary of one session.

    Attributes:
        partitions: number of partitions.
        known: number of partitions that were there before.
        images: number of images in those made now.
        failures: images among them with the line that says what is wrong.
        seconds: wall time.
        processes: number of processes.
    """

    partitions: int
    known: int = 0
    images: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    processes: int = 0


@dataclass(frozen=True)
class Question:
    """What is asked of each image.

    Attributes:
        load: returns the model on a device, ``"cpu"`` or ``"cuda"``; called once in each process.
        methods: as in :func:`xai_abn.explain`.
        targets: of each image; None is the top-1 class.
        layer: for every method given by name that reads one.
        column: column of a Parquet file with the images: encoded bytes, or ``{"bytes": ..., "path": ...}``.
    """

    load: Callable[[str], ModelAdapter]
    methods: Sequence[str | Explainer] | None = None
    targets: Sequence[Target | None] = (None,)
    layer: str | None = None
    column: str = "image"

    def explainers(self, model: ModelAdapter) -> list[Explainer]:
        """Return the methods for a model."""
        return make_explainers(model, self.methods, self.layer)

    def identity(self, model: ModelAdapter) -> dict[str, Any]:
        """Return all that the maps of an image depend on besides the image, as JSON values."""
        return json.loads(json.dumps(dependencies(model, self.explainers(model), self.targets)))  # type: ignore[no-any-return]


def explain_partitions(
    places: Sequence[str],
    output: str,
    question: Question,
    *,
    size: int = 500,
    processes: int | None = None,
    device: str = "cpu",
    workers: int = 2,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Explain images on Ray, and save the maps as a folder of Parquet files, one for each partition.

    A file has a row for each image and target: ``source``, ``target``, ``label``, ``probability``, a ``<method>_map``
    for each method, which is a fixed-shape tensor (h, w) in float32, and ``error``: None, or the reason why the maps
    are NaN and the others None. Rows are in the order of the images, and a file is there whole or not at all.

    Args:
        places: files, folders or globs, here or in any file system of fsspec, such as ``s3://bucket/images``. Images,
            Parquet files and tar files of WebDataset may be mixed.
        output: the folder, here or in such a file system; its name ends in ``.parquet``.
        question: model, methods and targets.
        size: images in a partition; a tar file is a partition of its own.
        processes: number of processes, each with the model; default: as many as the cluster has cores or GPUs.
        device: ``"cpu"`` or ``"cuda"``.
        workers: threads of each process that read images while the network runs.
        resume: make only the partitions that are missing.
        overwrite: replace the maps that are there.
        progress: called after each partition with the number of partitions done and their number.

    Raises:
        InvalidInputError: Ray is not installed, or an argument is wrong.
        ImageLoadError: a place holds no images.
        OutputError: maps are there and neither ``resume`` nor ``overwrite`` is given, or they cannot be written.
        RunError: with ``resume``, the maps there are of another model, other methods, targets or images.
        UnsupportedModelError: a method does not apply to the model, or the model is no classifier of images.
    """
    started = perf_counter()
    folder = _Folder(output)
    folder.check(resume, overwrite)
    with cluster.connected():
        number = processes or cluster.available(device)
        partitions = find_partitions(places, size, question.column, without=folder.address)
        model = question.load("cpu")
        shapes = _shapes(model, question)
        identity = question.identity(model)
        missing = folder.begin({**identity, "column": question.column}, partitions, resume)
        summary = Summary(len(partitions), len(partitions) - len(missing))
        summary.processes = min(number, len(missing))
        make = partial(PartitionExplainer, question, folder.address, shapes, identity, device, workers)
        for done, made in enumerate(cluster.spread(make, missing, summary.processes, device) if missing else (), 1):
            summary.images += made.images
            summary.failures += made.failures
            if progress is not None:
                progress(summary.known + done, summary.partitions)
    summary.seconds = perf_counter() - started
    return summary


class PartitionExplainer:
    """Explains the images of a partition and saves them as its file.

    Args:
        question: model, methods and targets.
        output: the folder of the maps.
        shapes: (h, w) of the maps of each method, by its specification.
        identity: see :meth:`Question.identity`.
        device: where the model is loaded to.
        workers: threads that read images while the network runs.

    Raises:
        RunError: the model that is loaded here is another one than that of ``identity``.
    """

    def __init__(
        self,
        question: Question,
        output: str,
        shapes: Mapping[str, tuple[int, ...]],
        identity: Mapping[str, Any],
        device: str = "cpu",
        workers: int = 2,
    ) -> None:
        self.question, self.output, self.shapes, self.workers = question, output, shapes, workers
        self.model = question.load(device)
        differing = _differing(identity, question.identity(self.model))
        if differing:
            raise RunError(
                f"the machines of the cluster differ in {', '.join(differing)}; give all the same files and the same "
                "version of xai-abn"
            )
        self.explainers = question.explainers(self.model)

    def __call__(self, partition: Partition) -> Made:
        """Return what became of a partition, when its file is written.

        Raises:
            OutputError: the file cannot be written.
            RunError: each process that tried has died.
            UnsupportedModelError: a method does not apply to the model.
        """
        folder = _Folder(self.output)
        folder.count_try(partition)
        sources: list[str] = []

        def images() -> Iterator[dict[str, Any]]:
            for source, read in _images(partition, self.question.column):
                sources.append(source)
                yield {"path": source, "bytes": _Lazy(read)}

        targets = repeat(self.question.targets)
        results = explain_images(self.model, images(), self.explainers, targets, workers=self.workers)
        rows: list[dict[str, Any]] = []
        failures = []
        for number, result in enumerate(results):
            rows += _rows(sources[number], result)
            if isinstance(result, XaiAbnError):
                failures.append((sources[number], result.line))
        folder.write(partition, _table(rows, self.shapes))
        return Made(len(sources), failures)


def find_partitions(places: Sequence[str], size: int, column: str = "image", without: str = "") -> list[Partition]:
    """Return the images of some places in partitions, always the same for the same files.

    Args:
        places: see :func:`explain_partitions`.
        size: images in a partition.
        column: that every Parquet file must have.
        without: a folder that is left out: that of the results.

    Raises:
        ImageLoadError: a place is missing, cannot be read, or holds no images.
        InvalidInputError: a Parquet file has no such column.
    """
    partitions: list[Partition] = []
    waiting: dict[str, str] = {}

    def add(files: Sequence[str], rows: tuple[int, int] = (0, 0), *facts: str) -> None:
        name = f"part-{len(partitions):05d}"
        partitions.append(Partition(name, tuple(files), rows, key_of(files=files, rows=rows, facts=facts)))

    def add_waiting() -> None:
        if waiting:
            add(list(waiting), (0, 0), *waiting.values())
            waiting.clear()

    found: dict[str, str] = {}
    for place in places:
        found.update(_find(place, without))
    for file, facts in found.items():
        if file.lower().endswith((".parquet", *_TARS)):
            add_waiting()
        if file.lower().endswith(".parquet"):
            number = _number_of_rows(file, column)
            for first in range(0, number, size):
                add([file], (first, min(first + size, number)), facts)
        elif file.lower().endswith(_TARS):
            add([file], (0, 0), facts)
        else:
            waiting[file] = facts
            if len(waiting) == size:
                add_waiting()
    add_waiting()
    if not partitions:
        raise ImageLoadError(f"{', '.join(places)}: no images; give another place")
    return partitions


def _find(place: str, without: str) -> dict[str, str]:
    """Return the addresses of the files of a place, in order, with facts that change with their content."""
    try:
        files, path = url_to_fs(place)
        if fsspec.core.has_magic(path):
            listed = files.glob(path, detail=True)
        elif files.isdir(path):
            listed = files.find(path, detail=True)
        else:
            listed = {path: files.info(path)}
        left_out = url_to_fs(without)[1].rstrip("/") + "/" if without else "\0"
    except FileNotFoundError as error:
        raise ImageLoadError(f"{place}: no such file or folder") from error
    except (OSError, ImportError, ValueError) as error:  # a missing driver of fsspec says what to install
        raise ImageLoadError(f"{place}: cannot be read ({error})") from error
    chosen = {
        name: ",".join(str(info[fact]) for fact in _FACTS if fact in info)
        for name, info in sorted(listed.items())
        if info["type"] == "file" and not name.startswith(left_out)
    }
    if list(listed) != [path]:  # a file that is named may have any ending
        below = len(path.split("*")[0])
        chosen = {n: f for n, f in chosen.items() if _is_wanted(n) and not _is_below_hidden(n[below:])}
    if not chosen:
        wanted = ", ".join(sorted([*EXTENSIONS, ".parquet", *_TARS]))
        raise ImageLoadError(f"{place}: no images here (looked for {wanted})")
    local = isinstance(files, LocalFileSystem)
    return {name if local else files.unstrip_protocol(name): facts for name, facts in chosen.items()}


def _is_wanted(name: str) -> bool:
    return name.lower().endswith((*EXTENSIONS, ".parquet", *_TARS))


def _is_below_hidden(name: str) -> bool:
    return any(is_hidden(part) for part in PurePosixPath(name).parts)


def _number_of_rows(file: str, column: str) -> int:
    """Return the number of rows of a Parquet file that has the column."""
    try:
        with _open(file) as opened:
            parquet = pq.ParquetFile(opened)
            names = parquet.schema_arrow.names
            rows: int = parquet.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise ImageLoadError(f"{file}: cannot be read ({_on_one_line(error)})") from error
    if column not in names:
        raise InvalidInputError(f"{file}: no column {column!r}; there are {', '.join(names)}: choose with --column")
    return rows


def _open(file: str) -> Any:
    files, path = url_to_fs(file)
    return files.open(path, "rb")


class _Lazy:
    """An image that is read in the thread that prepares it."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self.read = read


def _images(partition: Partition, column: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of each image of a partition, and a function that returns its bytes or raises an error."""
    file, names = partition.files[0], iter(partition.files)
    try:
        if file.lower().endswith(".parquet"):
            yield from _in_parquet(file, partition.rows, column)
        elif file.lower().endswith(_TARS):
            yield from _in_tar(file)
        else:
            yield from ((name, partial(_content, name)) for name in names)
    except (OSError, tarfile.TarError, EOFError, pa.ArrowException) as error:
        yield file, partial(_raise, ImageLoadError(f"{file}: damaged or cut short ({_on_one_line(error)})"))


def _content(file: str) -> bytes:
    with _open(file) as opened:
        content: bytes = opened.read()
    return content


def _raise(error: Exception) -> None:
    raise error


def _in_parquet(file: str, rows: tuple[int, int], column: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    first, end = rows
    with _open(file) as opened:
        parquet = pq.ParquetFile(opened)
        sizes = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
        starts = np.cumsum([0, *sizes])[:-1].tolist()
        groups = [n for n, start in enumerate(starts) if start < end and start + sizes[n] > first]
        row = starts[groups[0]] if groups else end
        for batch in parquet.iter_batches(_ROWS, row_groups=groups, columns=[column]):
            for number, value in enumerate(batch.column(0)):
                if first <= row + number < end:
                    yield f"{file}#{row + number}", partial(_cell, value.as_py())
            row += len(batch)


def _cell(value: Any) -> bytes:
    """Return the bytes of an image in a cell: bytes, those of Hugging Face's images, or an address."""
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str):
        return _content(value)
    if not isinstance(value, bytes):
        raise OSError("there is no image" if value is None else f"expected bytes, got {type(value).__name__}")
    return value


def _in_tar(file: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    with _open(file) as opened, tarfile.open(fileobj=opened, mode="r|*") as archive:
        for member in archive:
            if member.isfile() and PurePosixPath(member.name).suffix.lower() in EXTENSIONS:
                content = archive.extractfile(member)
                yield f"{file}#{member.name}", io.BytesIO(content.read() if content else b"").read


def _rows(source: str, result: Result) -> list[dict[str, Any]]:
    """Return the rows of an image: one for each target, with the maps of all methods."""
    if isinstance(result, XaiAbnError):
        return [{"source": source, "error": result.line}]
    shared = {e.method: e for e in result.values() if not e.class_specific}
    by_target: dict[str, dict[str, Explanation]] = {}
    for e in result.values():
        if e.class_specific:
            by_target.setdefault(e.label, {})[e.method] = e
    rows = []
    for own in by_target.values() or [{}]:
        row: dict[str, Any] = {"source": source}
        for e in (*shared.values(), *own.values()):
            row |= {"target": e.target, "label": e.label, "probability": e.probability, f"{e.method}_map": e.map}
        rows.append(row)
    return rows


def _table(rows: Sequence[Mapping[str, Any]], shapes: Mapping[str, tuple[int, ...]]) -> pa.Table:
    """Return rows as a table; maps are tensors as Arrow itself defines them, which other tools read as lists."""
    kinds = {"source": pa.string(), "target": pa.int64(), "label": pa.string(), "probability": pa.float32()}
    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in kinds.items()}
    for method, shape in shapes.items():
        columns[f"{method}_map"] = _tensors([row.get(f"{method}_map") for row in rows], shape)
    columns["error"] = pa.array([row.get("error") for row in rows], pa.string())
    return pa.table(columns)


def _tensors(maps: Sequence[np.ndarray | None], shape: tuple[int, ...]) -> pa.Array:
    """Return maps as a column; where there is none, NaN, as Ray and earlier Arrows cannot read tensors beside null."""
    other = next((found.shape for found in maps if found is not None and found.shape != shape), None)
    if other is not None:
        raise RunError(f"a map has the shape {other}, and that of another image {shape}; use a model of one input size")
    values = np.full((len(maps), *shape), np.nan, np.float32)
    for row, found in enumerate(maps):
        if found is not None:
            values[row] = found
    storage = pa.FixedSizeListArray.from_arrays(values.ravel(), math.prod(shape))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), shape), storage)


def _shapes(model: ModelAdapter, question: Question) -> dict[str, tuple[int, ...]]:
    """Return the shape of each method's maps, from an image of noise, so that mistakes show before the work begins."""
    if model.axes != 2 or model.gives_map or model.detects:
        raise UnsupportedModelError(
            f"{model.name} is no classifier of images, whose maps have one size; use explain without --engine ray"
        )
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    targets = [0 if target is None else target for target in question.targets]
    (result,) = explain_images(model, [Image.fromarray(noise)], question.explainers(model), [targets])
    if isinstance(result, XaiAbnError):
        raise result
    return {e.method: e.map.shape for e in result.values()}


class _Folder:
    """The folder of maps: a Parquet file for each partition, and a manifest of what they depend on.

    Attributes:
        address: of the folder, the same in every process.

    Raises:
        InvalidInputError: another ending than ``.parquet``.
        OutputError: there is no such file system.
    """

    def __init__(self, place: str) -> None:
        place = place.rstrip("/")
        if not place.endswith(".parquet"):
            raise InvalidInputError(f"--output {place}: with --engine ray it must end in .parquet")
        try:
            self.files, self.path = url_to_fs(place)
        except (ImportError, ValueError) as error:  # a missing driver of fsspec says what to install
            raise OutputError(f"cannot write {place}: {error}") from error
        self.place, self.address = place, self.path if isinstance(self.files, LocalFileSystem) else place

    def check(self, resume: bool, overwrite: bool) -> None:
        """Refuse what is there, unless it is ours and may be continued or replaced."""
        with self._writing():
            names, is_there = self._names(), self.files.exists(self.path)
        if is_there and MANIFEST not in names and (names or not self.files.isdir(self.path)):
            raise OutputError(f"{self.place} exists and was not created by xai-abn; choose another --output")
        if MANIFEST in names and not resume and not overwrite:
            raise OutputError(f"{self.place} holds maps; continue with --resume, or replace them with --overwrite")

    def begin(self, identity: Mapping[str, Any], partitions: Sequence[Partition], resume: bool) -> list[Partition]:
        """Return the partitions that are missing, after what does not count has been removed."""
        listed = [[p.name, p.key] for p in partitions]
        manifest = {"identity": dict(identity), "partitions": listed}
        with self._writing():
            names = self._names()
            if resume and MANIFEST in names:
                self._compare(manifest)
                kept = {MANIFEST, *(f"{p.name}.parquet" for p in partitions)}
            else:
                self.files.makedirs(self.path, exist_ok=True)
                kept = set()
            for name in names - kept:
                if name.startswith(("part-", "_draft-", "_tries-")):
                    self.files.rm_file(f"{self.path}/{name}")
            self._put(MANIFEST, json.dumps(manifest).encode())
        return [p for p in partitions if f"{p.name}.parquet" not in names & kept]

    def count_try(self, partition: Partition) -> None:
        """Note that a partition is begun, and refuse to begin it again and again."""
        path = f"{self.path}/_tries-{partition.name}"
        with self._writing():
            self.files.invalidate_cache()
            tries = int(self.files.cat_file(path)) if self.files.exists(path) else 0
            if tries == _TRIES:
                raise RunError(
                    f"{partition.name}, which begins with {partition.files[0]}, has ended its process {tries} times; "
                    "give processes more memory, or leave its images out"
                )
            self._put(f"_tries-{partition.name}", str(tries + 1).encode())

    def write(self, partition: Partition, table: pa.Table) -> None:
        """Write the file of a partition, whole or not at all."""
        content = io.BytesIO()
        pq.write_table(table, content, compression="zstd")
        with self._writing():
            self._put(f"{partition.name}.parquet", content.getvalue())
            self.files.rm_file(f"{self.path}/_tries-{partition.name}")

    def _compare(self, manifest: Mapping[str, Any]) -> None:
        """Refuse to continue maps of another model, other methods, targets or images."""
        try:
            before = json.loads(self.files.cat_file(f"{self.path}/{MANIFEST}"))
            known, listed = dict(before["identity"]), before["partitions"]
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{self.place}: {MANIFEST} is damaged; start again with --overwrite") from error
        differing = _differing(known, manifest["identity"])
        differing += ["images or --partition"] if listed != manifest["partitions"] else []
        if differing:
            raise RunError(
                f"{self.place} was begun with other {', '.join(differing)}; maps are never mixed: choose another "
                "--output, or start again with --overwrite"
            )

    def _names(self) -> set[str]:
        """Return the names of the files in the folder."""
        self.files.invalidate_cache()
        if not self.files.isdir(self.path):
            return set()
        return {PurePosixPath(path).name for path in self.files.ls(self.path, detail=False)}

    def _put(self, name: str, content: bytes) -> None:
        """Write a file in one step: by moving it into place here; object stores show a file when it is whole."""
        path, local = f"{self.path}/{name}", isinstance(self.files, LocalFileSystem)
        draft = f"{self.path}/_draft-{uuid4().hex}" if local else path
        self.files.pipe_file(draft, content)
        if local:
            os.replace(draft, path)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what a file system raises into one error."""
        try:
            yield
        except XaiAbnError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {self.place}: {error.strerror or error}") from error


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in now if before.get(name) != now[name]]


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
