"""A benchmark in processes of Ray: each measures a shard of the run, and the shards are merged."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

from xai_abn import cluster
from xai_abn.benchmark.exchange import merge_runs
from xai_abn.benchmark.runner import Progress, Summary, benchmark
from xai_abn.benchmark.settings import BenchmarkSettings
from xai_abn.benchmark.store import Store
from xai_abn.datasets import Dataset
from xai_abn.errors import InvalidInputError, OutputError
from xai_abn.explainers import Explainer
from xai_abn.models.adapter import ModelAdapter


def benchmark_on_ray(
    load: Callable[[str], ModelAdapter],
    read: Callable[[ModelAdapter], Dataset],
    methods: Sequence[str | Explainer],
    metrics: Sequence[str],
    output: str | Path,
    settings: BenchmarkSettings | None = None,
    *,
    processes: int | None = None,
    device: str = "cpu",
    command: str = "",
    progress: Progress | None = None,
) -> Summary:
    """Score methods on annotated images in processes of Ray, each of which measures a shard of the run.

    The shards are files in a folder beside the run until they are merged into it. What the run holds, or a shard of an
    earlier call that was interrupted, is not computed again, regardless of the number of processes.

    Args:
        load: returns the model on a device, ``"cpu"`` or ``"cuda"``; called once in each process.
        read: returns the data for a model; called once in each process, which must be able to read the same images.
        methods: see :func:`xai_abn.benchmark.benchmark`.
        metrics: see there.
        output: the run's file, in a folder that all machines see.
        settings: see :class:`BenchmarkSettings`; those of the whole run.
        processes: number of processes and shards; default: as many as the cluster has cores or GPUs.
        device: ``"cpu"`` or ``"cuda"``.
        command: recorded with the run.
        progress: called after each shard.

    Raises:
        InvalidInputError: Ray is not installed, or the settings are those of a shard.
        RunError: what :func:`xai_abn.benchmark.benchmark` raises in a process, with its message.
        OutputError: the run cannot be written.
    """
    started, output, settings = perf_counter(), Path(output), settings or BenchmarkSettings()
    if settings.shard != (1, 1):
        raise InvalidInputError("the engine ray makes the shards itself; leave out --shard")
    with cluster.connected():
        number = processes or cluster.available(device)
        folder = shards_of(output)
        _merge(output, folder)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
        make = partial(_ShardRunner, load, read, methods, metrics, output, folder, settings, device, command)
        shards = [(index, number) for index in range(1, number + 1)]
        summaries: list[Summary] = []
        for summary in cluster.spread(make, shards, number, device):
            summaries.append(summary)
            if progress is not None:
                done = sum(one.images for one in summaries)
                progress(done, round(done * number / len(summaries)))
    _merge(output, folder)
    return _joined(output, summaries, perf_counter() - started)


def shards_of(output: Path) -> Path:
    """Return the folder of a run's shards while they are measured: of ``run.sqlite`` it is ``run.shards``."""
    return output.with_name(f"{output.stem}.shards")


class _ShardRunner:
    """Measures a shard as ``xai-abn benchmark run --shard I/N`` does."""

    def __init__(
        self,
        load: Callable[[str], ModelAdapter],
        read: Callable[[ModelAdapter], Dataset],
        methods: Sequence[str | Explainer],
        metrics: Sequence[str],
        output: Path,
        folder: Path,
        settings: BenchmarkSettings,
        device: str,
        command: str,
    ) -> None:
        self.model = load(device)
        self.data = read(self.model)
        self.methods, self.metrics, self.settings, self.command = methods, metrics, settings, command
        self.output, self.folder = output, folder

    def __call__(self, shard: tuple[int, int]) -> Summary:
        """Return the summary of a shard, I of N, when its file is complete."""
        settings = self.settings.model_copy(update={"shard": shard})
        file = self.folder / "{}-of-{}.sqlite".format(*shard)
        base = self.output if self.output.exists() else None
        return benchmark(
            self.model, self.data, self.methods, self.metrics, file, settings, base=base, command=self.command
        )


def _merge(output: Path, folder: Path) -> None:
    """Merge the shards in a folder into the run, whole or not at all, and remove them."""
    shards = sorted(folder.glob("*-of-*.sqlite"))
    if shards:
        draft = folder / "merged.sqlite"
        draft.unlink(missing_ok=True)
        merge_runs(draft, [*([output] if output.exists() else []), *shards])
        os.replace(draft, output)
    for path in folder.glob("*-of-*.sqlite*"):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _joined(output: Path, summaries: Sequence[Summary], seconds: float) -> Summary:
    """Return what the summaries of all shards say together."""
    first = summaries[0]
    predictions = dict.fromkeys(one.predictions for one in summaries if one.predictions)
    with Store.read(output) as store:
        superseded = len(store.superseded())
    return Summary(
        output,
        images=sum(one.images for one in summaries),
        measured=sum(one.measured for one in summaries),
        known=sum(one.known for one in summaries),
        failed=list(dict.fromkeys(failure for one in summaries for failure in one.failed)),
        superseded=superseded,
        copies=sum(one.copies for one in summaries),
        unknown_classes=first.unknown_classes,
        shared_labels=first.shared_labels,
        seconds=seconds,
        predictions="; ".join(predictions),
        notes=tuple(dict.fromkeys(note for one in summaries for note in one.notes)),
    )
