"""``xai-abn explain``: images in, heatmaps out."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xai_abn import cluster
from xai_abn.cli import options
from xai_abn.cli._console import progress_bar
from xai_abn.cli.methods import check_methods, shipped
from xai_abn.cli.options import ClipFormat, Crop, Engine, ImageFormat
from xai_abn.cli.settings import with_settings
from xai_abn.errors import ImageLoadError, InvalidInputError, OutputError, XaiAbnError
from xai_abn.files import key_of
from xai_abn.models.settings import ModelSettings, PredictionSettings

if TYPE_CHECKING:
    from xai_abn.cli.output import OutputFolder
    from xai_abn.models.adapter import ModelAdapter
    from xai_abn.models.passes import Passes
    from xai_abn.models.targets import Difference
    from xai_abn.pipeline import Result


#: The argument that stands for an image on standard input.
STDIN = "-"
#: Errors that prevent the writing of every file, not only of one.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
#: Parameters of what is drawn and printed, and those of partitions.
_DRAWN = (
    *("image_format", "sheets", "save_maps", "boxes", "masks", "clip", "coco", "as_json"),
    *("colormap", "opacity", "contour"),
)
_PARTITIONS = ("processes", "partition", "column")
#: Failures that are printed of partitions; all are in the files.
_SHOWN = 20


@with_settings(
    {"model": ModelSettings, "prediction": PredictionSettings},
    short={"model": "-m"},
    panels={options.MODEL: (*ModelSettings.model_fields, *PredictionSettings.model_fields)},
)
def command(
    context: typer.Context,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders, globs, - for standard input, or bundled images such as example:cat; videos, "
            "GIFs or NIfTI files for a model that takes clips or volumes. With --engine ray also Parquet and tar files "
            "and addresses such as s3://bucket/images.",
            metavar="IMAGE...",
        ),
    ],
    model: dict[str, Any],
    prediction: dict[str, Any],
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-M",
            help="Methods to explain with, comma-separated or repeated: cam,rise:masks=500; see 'xai-abn list "
            "methods'.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="Class to explain, as label or index; repeat the option for several. Default: the predicted class, or "
            "all attributes found.",
        ),
    ] = None,
    versus: Annotated[
        str | None,
        typer.Option(
            "--versus", help="Class to compare the target with, as label or index: why the target and not this class?"
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer", "-l", help="Layer to read; see 'xai-abn list layers'. Default: a suitable one is found."
        ),
    ] = None,
    similar_to: Annotated[
        list[str] | None,
        typer.Option(
            "--similar-to",
            help="Instead of a class, explain what makes the images similar to this image, measured by the features in "
            "front of the model's last layer. Repeat the option for several.",
            metavar="IMAGE",
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the overlays; with --engine ray for Parquet files, here or at an address, ending in "
            ".parquet.",
            metavar="FOLDER",
            rich_help_panel=options.OUTPUT,
        ),
    ] = "explanations",
    crop: Annotated[
        Crop | None,
        typer.Option(help="'squash' shows the network the whole image, 'center' its middle. Default: the model's own."),
    ] = None,
    image_format: Annotated[
        ImageFormat,
        typer.Option(
            "--format",
            help="File format of the overlays. 'jpg' has quality 90 and takes a sixth of the space.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = ImageFormat.PNG,
    sheets: Annotated[
        bool,
        typer.Option(
            "--sheet",
            help="Show the image beside its map, even if there is only one map.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    save_maps: Annotated[
        bool,
        typer.Option(
            "--save-maps",
            help="Also save each raw map as a NumPy file (.npy). Volumes and clips always have one.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    boxes: Annotated[
        float | None,
        typer.Option(
            help="Add to the records (--json, records.jsonl) a box around each part of a map above this share of its "
            "range: left, top, right, bottom, in pixels of the image.",
            metavar="SHARE",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    masks: Annotated[
        float | None,
        typer.Option(
            help="Also save a mask of each map, white where the map is above this share of its range: for an image as "
            "PNG of its size, for a volume as NIfTI, for a clip as a NumPy file.",
            metavar="SHARE",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    clip: Annotated[
        ClipFormat | None,
        typer.Option(
            help="Also save all slices of a volume or frames of a clip with their map, one after another.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    coco: Annotated[
        float | None,
        typer.Option(
            help="Also write annotations.json in COCO's format: box, mask and area of each part of a map above this "
            "share of its range, with the class and its probability as score.",
            metavar="SHARE",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of a table.", rich_help_panel=options.OUTPUT)
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="Show no progress bar and no table. Warnings and errors are still shown.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Skip images, or partitions, that the same command has already explained into --output.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    colormap: Annotated[
        str,
        typer.Option(
            help="Colormap of the overlays: viridis, inferno, magma, plasma, cividis, turbo, jet.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = "viridis",
    opacity: Annotated[
        float | None,
        typer.Option(
            help="Opacity of the map over the image, the same everywhere: 1 shows only the map. Default: weak parts "
            "of a map leave the image untouched.",
            metavar="SHARE",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    contour: Annotated[
        float | None,
        typer.Option(
            help="Also draw a line around the parts of a map above this share of its range.",
            metavar="SHARE",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    device: options.Device = "cpu",
    workers: Annotated[
        int,
        typer.Option(
            help="Threads that read images and draw maps while the network runs; 0 does one after the other.", min=0
        ),
    ] = 2,
    engine: options.EngineOption = Engine.LOCAL,
    processes: options.Processes = None,
    partition: Annotated[
        int,
        typer.Option(
            help="Images in a partition, which is one file, and what is lost at most if a process dies. A tar file is "
            "a partition of its own.",
            min=1,
            metavar="N",
            rich_help_panel=options.ENGINE,
        ),
    ] = 500,
    column: Annotated[
        str,
        typer.Option(
            help="Column of a Parquet file that holds the images, as encoded bytes or as Hugging Face stores them.",
            metavar="NAME",
            rich_help_panel=options.ENGINE,
        ),
    ] = "image",
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Also replace files that xai-abn did not create; with --engine ray, maps of an earlier command.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
) -> None:
    """Explain images: where did the classifier look?

    Example: xai-abn explain holiday.jpg --method abn,grad-cam
    """
    check_methods(method or [])
    for option, share in (("--boxes", boxes), ("--masks", masks), ("--coco", coco), ("--contour", contour)):
        if share is not None and not 0 < share <= 1:
            raise InvalidInputError(f"{option} must be above 0 and at most 1, got {share}")
    if opacity is not None and not 0 <= opacity <= 1:
        raise InvalidInputError(f"--opacity must be from 0 to 1, got {opacity}")
    for reference in similar_to or []:
        _check_reference(reference)
    load = partial(_load, options.chosen_model(model), prediction, crop, similar_to)
    if engine is Engine.RAY:
        options.refuse_given(context, _DRAWN, "does not go with --engine ray, which draws nothing; leave it out")
        asked = {"methods": method, "targets": _asked(target or [], versus), "layer": layer, "column": column}
        how = {"size": partition, "processes": processes, "device": device, "workers": workers}
        how |= {"resume": resume, "overwrite": overwrite}
        _explain_on_ray(images, output, {"load": load, **asked}, how, quiet)
        return
    options.refuse_given(context, _PARTITIONS, "is an option of --engine ray; give that, too, or leave it out")
    sources, failures = _expand(images)
    if not sources:
        _finish(failures, len(failures))
        return
    from xai_abn.cli.output import OutputFolder

    folder = OutputFolder(
        Path(output),
        overwrite=overwrite,
        drawing={"colormap": colormap, "opacity": opacity, "contour": contour},
        maps=save_maps,
        image_format=image_format,
        sheets=sheets,
        boxes=boxes,
        masks=masks,
        clip=clip,
        coco=coco,
    )
    work = _Work(load(device), method or None, layer, (target or [], versus), sources, folder, workers)
    try:
        work.run(resume, quiet)
    except KeyboardInterrupt as stop:
        folder.save_annotations(work.records())
        _print(work.records(), failures + work.failures, as_json, quiet)
        raise KeyboardInterrupt(
            "the files written so far are complete; run the same command with --resume to continue"
        ) from stop
    folder.save_annotations(work.records())
    failures += work.failures
    _print(work.records(), failures, as_json, quiet)
    _print_predictions(work)
    _finish(failures, len(sources) + len(failures) - len(work.failures))


def _load(
    settings: ModelSettings, prediction: dict[str, Any], crop: Crop | None, references: list[str] | None, device: str
) -> ModelAdapter:
    """Return the model that the options describe."""
    adapter = options.load_model(settings, device, prediction)
    if crop is not None:
        adapter = replace(adapter, preprocess=replace(adapter.preprocess, crop=crop.value))
    if references:
        from xai_abn import similarity

        adapter = similarity.similar_to(adapter, references)
    return adapter


def _explain_on_ray(images: list[str], output: str, asked: dict[str, Any], how: dict[str, Any], quiet: bool) -> None:
    """Explain the images in processes of Ray, say what became of them, and exit with 1 if any failed."""
    cluster.check_installed()
    from xai_abn.integrations.partitions import Question, explain_partitions

    with progress_bar("explaining", hidden=quiet, unit="partitions") as update:
        try:
            summary = explain_partitions(images, output, Question(**asked), **how, progress=update)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                "the partitions written so far are complete; the same command with --resume goes on"
            ) from stop
    if summary.known:
        typer.echo(f"note: {summary.known} of {summary.partitions} partitions are done and are skipped", err=True)
    if not quiet:
        typer.echo(
            f"{output}: {summary.images} images in {summary.seconds:.0f} s by {summary.processes} processes, "
            f"{len(summary.failures)} failed"
        )
    hidden = len(summary.failures) - _SHOWN
    for _, line in summary.failures[:_SHOWN]:
        typer.echo(f"xai-abn: {line}", err=True)
    if hidden > 0:
        typer.echo(f"xai-abn: and {hidden} others; see the column error", err=True)
    if summary.failures:
        raise typer.Exit(1)


def _print_predictions(work: _Work) -> None:
    """Print which backends were chosen, if any were, and what the user should know of the others."""
    from xai_abn.models.predictor import kept_predictor

    of_maps = None if work.passes is None else work.passes.predictor
    chosen = {"predictions": kept_predictor(work.model), "maps": of_maps}
    for what, predictor in chosen.items():
        if predictor is not None and predictor.trials:
            typer.echo(f"note: {what}: {predictor}", err=True)
        for note in () if predictor is None else predictor.notes:
            typer.echo(f"note: {note}", err=True)


def _check_reference(place: str) -> None:
    """Refuse a file that cannot be an image before a model is loaded."""
    from xai_abn.images.loading import EXAMPLE_PREFIX, check_file

    if not place.startswith(EXAMPLE_PREFIX):
        check_file(place)


def _print(records: list[dict[str, Any]], failures: list[tuple[str, str]], as_json: bool, quiet: bool) -> None:
    if as_json:
        failed = [{"source": s, "error": e} for s, e in failures]
        typer.echo(json.dumps({"explanations": records, "failed": failed}, indent=2))
    else:
        _report(records, quiet)


def _expand(images: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the paths of the images, each once, and the arguments that match no image."""
    from xai_abn.images.loading import EXAMPLE_PREFIX, check_file, find_images

    sources: dict[str, None] = {}
    failures = []
    for argument in images:
        try:
            if not argument.strip():
                raise InvalidInputError("an image argument is empty; give a file, a folder or a glob")
            found = find_images(argument)
            if found != [argument]:
                found = _without_drawings(argument, found)
            elif not argument.startswith(EXAMPLE_PREFIX) and argument != STDIN:
                check_file(argument)
            sources.update(dict.fromkeys(found))
        except ImageLoadError as error:
            known = argument in shipped()
            hint = f"; {argument} is a method: write --method A,B without spaces" if known else ""
            failures.append((argument, error.line + hint))
        except XaiAbnError as error:
            failures.append((argument, error.line))
    return list(sources), failures


def _without_drawings(argument: str, found: list[str]) -> list[str]:
    """Leave out the drawings that an earlier run wrote into the folder that is explained."""
    from xai_abn.cli.output import is_own_drawing

    kept = [path for path in found if not is_own_drawing(path)]
    if len(kept) < len(found):
        typer.echo(f"note: {argument}: {len(found) - len(kept)} drawings of xai-abn are skipped", err=True)
    return kept


class _Work:
    """The images to explain, and what became of them so far.

    Attributes:
        failures: images with the line that says what is wrong.
        passes: what computed the forward passes; None if it was the network alone.
    """

    def __init__(
        self,
        model: ModelAdapter,
        methods: list[str] | None,
        layer: str | None,
        asked: tuple[list[str], str | None],
        sources: list[str],
        folder: OutputFolder,
        workers: int,
    ) -> None:
        from xai_abn.explainers import make_explainers

        self.model, self.sources, self.folder, self.workers = model, sources, folder, workers
        self.explainers = make_explainers(model, methods, layer)
        self.targets = _resolve(model, *asked)
        same = [e.spec for e in self.explainers if self.targets != [None] and not e.is_class_specific(model)]
        if same:
            typer.echo(f"note: {', '.join(same)}: the map is the same for every target", err=True)
        self.failures: list[tuple[str, str]] = []
        self._stems = {source: folder.stem("stdin" if source == STDIN else source) for source in sources}
        self._done: dict[str, list[dict[str, Any]]] = {}
        self.passes: Passes | None = None

    def records(self) -> list[dict[str, Any]]:
        """Return a record for each map of the images that are done."""
        return [record for source in self.sources for record in self._done.get(source, [])]

    def run(self, resume: bool, quiet: bool = False) -> None:
        """Explain and save each image, except those that are done if the work is resumed."""
        from xai_abn.cli.records import RecordFile
        from xai_abn.explainers import passes_of
        from xai_abn.pipeline import explain_images
        from xai_abn.threads import in_order

        file = RecordFile(self.folder.path, self._keys(), resume=resume, overwrite=self.folder.overwrite)
        self._done = {source: file.done[stem] for source, stem in self._stems.items() if stem in file.done}
        if self._done:
            typer.echo(f"note: {len(self._done)} of {len(self.sources)} images are done and are skipped", err=True)
        left = [source for source in self.sources if source not in self._done]
        with progress_bar("explaining", hidden=quiet or len(left) < 2) as update:
            images = ({"bytes": sys.stdin.buffer.read(), "path": "stdin"} if s == STDIN else s for s in left)
            workers = 0 if len(left) < 2 else self.workers
            self.passes = passes_of(self.model, self.explainers, len(left))
            results = explain_images(
                self.model, images, self.explainers, repeat(self.targets), workers=workers, passes=self.passes
            )
            saved = in_order(self._saved, zip(left, results, strict=True), workers)
            for number, (source, records) in enumerate(zip(left, saved, strict=True), 1):
                try:
                    if isinstance(records, XaiAbnError):
                        raise records
                    file.add(self._stems[source], records)
                    self._done[source] = records
                except XaiAbnError as error:
                    full = _is_full(error)
                    rest = f"; stopped after {number - 1} of {len(left)} images: free some space and run the same "
                    rest += "command again, with --resume"
                    self.failures.append((source, error.line + (rest if full else "")))
                    if full:
                        break
                update(number, len(left))

    def _saved(self, explained: tuple[str, Result]) -> list[dict[str, Any]] | XaiAbnError:
        """Save the explanations of an image and return their records, or what went wrong with it."""
        source, result = explained
        if isinstance(result, XaiAbnError):
            return result
        try:
            parts = [self.folder.parts_of(e) for e in result.values()]
            files = self.folder.save("stdin" if source == STDIN else source, list(result.values()))
        except XaiAbnError as error:
            return error
        return [
            {**e.to_dict(), **found, "seconds": e.seconds, "files": [str(f) for f in made]}
            for e, found, made in zip(result.values(), parts, files, strict=True)
        ]

    def _keys(self) -> dict[str, str]:
        """Return, by stem, a key of all that the files of an image depend on; empty for standard input."""
        from xai_abn.pipeline import dependencies

        facts = {**dependencies(self.model, self.explainers, self.targets), "files": self.folder.settings}
        return {
            stem: "" if source == STDIN else key_of(**facts, image=[source, stem, *_state(source)])
            for source, stem in self._stems.items()
        }


def _state(source: str) -> tuple[int, ...]:
    """Return size and time of change of an image's file; nothing for a bundled image."""
    try:
        found = os.stat(source)
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns


def _is_full(error: XaiAbnError) -> bool:
    cause = error.__cause__ if isinstance(error, OutputError) else None
    return isinstance(cause, OSError) and cause.errno in _FULL


def _resolve(model: ModelAdapter, targets: list[str], versus: str | None) -> list[int | str | Difference | None]:
    """Look up labels before any image is read."""
    from xai_abn.models.targets import Difference

    def found(target: str) -> int | str:
        if model.labels is None or model.detects:  # "dog#2" is found in each image
            return target
        return model.target_index(target, len(model.labels))

    chosen: list[int | str | None] = [found(target) for target in targets]
    if versus is not None:
        return [Difference(target, versus=found(versus)) for target in chosen or [None]]
    return list(chosen) or [None]


def _asked(targets: list[str], versus: str | None) -> list[str | Difference | None]:
    """Return the targets as they were given; each process looks them up."""
    from xai_abn.models.targets import Difference

    chosen: list[str | None] = list(targets) or [None]
    return [target if versus is None else Difference(target, versus=versus) for target in chosen]


def _report(records: list[dict[str, Any]], quiet: bool) -> None:
    from xai_abn.cli._console import print_table

    rows = [
        (
            r["label"] if r["class_specific"] else f"{r['label']} (map: any class)",
            f"score {r['score']:.4g}" if r["probability"] is None else f"{r['probability']:.1%}",
            r["method"],
            r["layer"],
            r["files"][0],
            f"{r['seconds'] * 1000:.0f} ms",
        )
        for r in records
    ]
    if rows and not quiet:
        print_table(("label", "probability", "method", "layer", "file", "time"), rows, right=("probability", "time"))
    for r in records:
        if r["flaw"]:
            typer.echo(
                f"warning: {r['source']}: the {r['method']} map{_of(r)} is {r['flaw']}, so no map is drawn", err=True
            )
    for source, note in dict.fromkeys((r["source"], n) for r in records for n in r["notes"]):
        typer.echo(f"note: {source}: {note}", err=True)


def _of(record: dict[str, Any]) -> str:
    return f" of {record['label']}" if record["class_specific"] else ""


def _finish(failures: list[tuple[str, str]], total: int) -> None:
    """Print each failure on one line, and exit with 1 if there are any."""
    for _, line in failures:
        typer.echo(f"xai-abn: {line}", err=True)
    if failures and total > 1:
        typer.echo(f"xai-abn: {len(failures)} of {total} images failed", err=True)
    if failures:
        raise typer.Exit(1)
