"""What the page asks for, as functions from plain values to plain values; they know no HTTP."""

from __future__ import annotations

import base64
import io
import json
import shlex
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import cv2
import numpy as np
import torch
from PIL import Image

from xai_abn.app.suspicion import Suspicion, sorted_by_suspicion, suspicion_of
from xai_abn.datasets.corrections import AVOID, LOOK, MARKED_MAPS, Corrections, MarkedMap
from xai_abn.datasets.sample import Sample
from xai_abn.errors import InvalidInputError, UnknownNameError, UnsupportedModelError, XaiAbnError
from xai_abn.explainers import Explainer, make_explainers, names
from xai_abn.explanation import Explanation
from xai_abn.files import digest
from xai_abn.images.loading import EXAMPLE_PREFIX, EXAMPLES, LoadedImage, decode_image, load_image
from xai_abn.images.preprocess import PreparedImage
from xai_abn.metrics.faithfulness import polarity
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.editing import EditableImage
from xai_abn.models.targets import Difference, Target
from xai_abn.networks.tracing import evaluating, on_device, without_gradients
from xai_abn.pipeline import explain_batch
from xai_abn.rendering import COLORMAPS, DEFAULT_COLORMAP, png_bytes

#: Largest image file that is taken, in bytes.
MAX_UPLOAD = 64 * 2**20
#: Bytes of images that are kept; the page sends one again that is no longer there.
KEPT_BYTES = 512 * 2**20
#: Prepared images, editable images and explanations that are kept of each.
KEPT = 24
#: Computations of maps that run at a time, so that several people share the machine and its memory.
AT_A_TIME = 2
#: Longest side of a small image, in pixels.
THUMBNAIL = 128
#: Images of a folder that are listed.
SHOWN = 500
#: Classes that are listed.
TOP = 5
#: Values of a mark in the bytes of a painted image.
UNMARKED, LOOKED, AVOIDED = 0, 1, 2

T = TypeVar("T")


class UnknownImageError(UnknownNameError):
    """Raised when the server no longer has an image, so that the page sends it again."""


class _Recent(Generic[T]):
    """The results asked for last, at most so many, and so large together."""

    def __init__(self, number: int, size: float = float("inf"), size_of: Callable[[T], float] = lambda _: 0) -> None:
        self._number, self._size, self._size_of = number, size, size_of
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> T | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, value: T) -> T:
        with self._lock:
            self._kept[key] = value
            while len(self._kept) > self._number or (
                len(self._kept) > 1 and sum(map(self._size_of, self._kept.values())) > self._size
            ):
                self._kept.popitem(last=False)
        return value

    def got(self, key: Hashable, make: Callable[[], T]) -> T:
        found = self.get(key)
        return self.put(key, make()) if found is None else found


class OfferedModel:
    """A model that the page can choose, loaded when it is first asked for.

    Args:
        name: by which the page calls it.
        load: returns the model.
        arguments: what :func:`xai_abn.load_model` takes besides the name; None for a model that it does not know.
    """

    def __init__(self, name: str, load: Callable[[], ModelAdapter], arguments: Mapping[str, Any] | None = None) -> None:
        self.name, self.arguments = name, arguments
        self._load, self._lock = load, threading.Lock()
        self._adapter: ModelAdapter | None = None

    @property
    def adapter(self) -> ModelAdapter:
        """The model.

        Raises:
            UnsupportedModelError: it segments, detects, or gives no probabilities of classes.
        """
        with self._lock:
            if self._adapter is None:
                adapter = self._load()
                if adapter.detects or not adapter.has_probabilities:
                    raise UnsupportedModelError(
                        f"{self.name} is not a classifier with probabilities, which the page needs; use 'xai-abn "
                        "explain' for it, or wrap(..., multi_label=True) if its one output is the logit of a class"
                    )
                self._adapter = adapter
        return self._adapter

    @cached_property
    def methods(self) -> list[dict[str, Any]]:
        """Each method that applies to the model, with what it costs."""
        found = []
        for name in names():
            try:
                (explainer,) = make_explainers(self.adapter, name)
            except XaiAbnError:
                continue
            quick = explainer.cost in ("none", "partial backward")
            found.append({"name": name, "cost": explainer.cost, "quick": quick, "baseline": explainer.baseline})
        return found


@dataclass(frozen=True)
class Question:
    """What maps are asked for with.

    Attributes:
        model: name of the model.
        image: the image.
        methods: specifications of the methods.
        target: index of the class; None for the default of the model.
        versus: index of the class that it is compared with, or None.
        also: indices of further classes.
    """

    model: str
    image: str
    methods: tuple[str, ...]
    target: int | None = None
    versus: int | None = None
    also: tuple[int, ...] = ()

    @property
    def targets(self) -> list[Target | None]:
        """The targets, as :func:`xai_abn.explain` takes them for an image."""
        first = self.target if self.versus is None else Difference(self.target, versus=self.versus)
        return [first, *self.also]

    @property
    def classes(self) -> tuple[int | None, ...]:
        """All classes: the target, the one it is compared with, the others."""
        return self.target, self.versus, *self.also


@dataclass(frozen=True)
class _Upload:
    name: str
    content: bytes


class Service:
    """Images, maps, edits and corrections of some models.

    Args:
        models: the models to choose from, the first one shown.
        corrections: folder of the corrections.
        images: what the page may show besides the images that it sends; these are sorted by suspicion.

    Attributes:
        served: these images, by the name that the page knows them by.
        problems: (file, reason) of corrections in the folder that cannot be read.

    Raises:
        XaiAbnError: the first model cannot be loaded, or the folder holds no corrections.
    """

    def __init__(
        self, models: Sequence[OfferedModel], corrections: str | Path = "corrections", images: Sequence[Sample] = ()
    ) -> None:
        self._models = {model.name: model for model in models}
        self._first = models[0]
        self._folder = Path(corrections)
        self.served = {f"file:{digest(sample.source.encode())[:16]}": sample for sample in images}
        self._uploads: _Recent[_Upload] = _Recent(10_000, KEPT_BYTES, lambda upload: len(upload.content))
        self._prepared: _Recent[PreparedImage] = _Recent(KEPT)
        self._edits: _Recent[EditableImage] = _Recent(KEPT)
        self._explained: _Recent[list[Explanation]] = _Recent(KEPT)
        self._polarities: _Recent[list[float | None]] = _Recent(KEPT)
        self._writing = threading.Lock()
        self._queues: dict[str, _Queue] = {}
        self._turn = threading.BoundedSemaphore(AT_A_TIME)
        _ = self._first.adapter
        self.problems = Corrections(self._folder).problems

    def start(self) -> dict[str, Any]:
        """Return what the page needs when it opens."""
        return {
            "models": list(self._models),
            "examples": [f"{EXAMPLE_PREFIX}{name}" for name in EXAMPLES],
            "images": [{"image": ref, "name": sample.source} for ref, sample in list(self.served.items())[:SHOWN]],
            "queue": len(self.served),
            "corrections": str(self._folder),
            "max_upload": MAX_UPLOAD,
            "colors": _colors(),
        }

    def describe(self, model: str) -> dict[str, Any]:
        """Return a model's labels, methods and size of input."""
        offered = self._offered(model)
        adapter = offered.adapter
        first = ["abn-mask", "abn", "abn-class"] if adapter.uses_attention_map else []
        known = [method["name"] for method in offered.methods]
        return {
            "model": model,
            "labels": [adapter.label(index) for index in range(adapter.number_of_classes)],
            "methods": offered.methods,
            "chosen": [name for name in (*first, "grad-cam", "cam", "hires-cam") if name in known][:4],
            "editable": adapter.uses_attention_map,
            "multi_label": adapter.multi_label,
            "input": list(adapter.preprocess.height_and_width),
        }

    def upload(self, content: bytes, name: str) -> dict[str, Any]:
        """Keep an image that the page sent.

        Raises:
            ImageLoadError: it cannot be read as an image.
        """
        name = Path(name.replace("\\", "/")).name[:200] or "image"
        loaded = decode_image(content, name)
        image = f"sent:{digest(content)}"
        self._uploads.put(image, _Upload(name, content))
        return {"image": image, "name": name, "width": loaded.image.width, "height": loaded.image.height}

    def view(self, model: str, image: str) -> bytes:
        """Return what the network sees of an image, as PNG."""
        return png_bytes(Image.fromarray(self._prepare(model, image).view))

    def thumbnail(self, model: str, image: str) -> bytes:
        """Return a small image of what the network sees of an image, as PNG."""
        shown = Image.fromarray(self._prepare(model, image).view)
        shown.thumbnail((THUMBNAIL, THUMBNAIL))
        return png_bytes(shown)

    def explain(self, asked: Question) -> dict[str, Any]:
        """Return the maps of an image, with everything that is shown beside them."""
        records = self._explain(asked)
        adapter, prepared = self._offered(asked.model).adapter, self._prepare(asked.model, asked.image)
        explainers = {explainer.spec: explainer for explainer in make_explainers(adapter, asked.methods)}
        first = next((record for record in records if record.class_specific), records[0])
        target = first.predicted if asked.target is None else asked.target
        name, _ = self._source(asked.image)
        shown = {
            "image": {
                "image": asked.image,
                "name": name,
                "size": prepared.size,
                "notes": list(prepared.notes),
                "input": list(prepared.tensor.shape[1:]),
            },
            "model": asked.model,
            "target": target,
            "label": adapter.label(target),
            "top": [{"label": label, "probability": p} for label, p in first.top],
            "attention": None,
            "maps": [
                record.to_dict()
                | {
                    "values": _encoded(record.map),
                    "limits": record.limits,
                    "says": what_it_says(explainers[record.method], adapter, record.label),
                }
                for record in records
            ],
            "python": self._python(asked, name, records[0]),
            "command": self._command(asked, name),
            "edit_python": self._edit_python(asked.model, name, target) if adapter.uses_attention_map else None,
        }
        if adapter.uses_attention_map:
            own = self._edit(asked.model, asked.image).own
            shown["attention"] = [
                {"label": adapter.label(index), "probability": _number(float(own.attention_probabilities[index]))}
                for index in own.attention_logits.topk(min(TOP, len(own.attention_logits))).indices.tolist()
            ]
        return shown

    def polarity(self, asked: Question) -> list[float | None]:
        """Return the polarity of each map on this image, in order; None where it is not defined.

        It needs a probability, which neither the difference of two classes nor every model has.
        """
        records, adapter = self._explain(asked), self._offered(asked.model).adapter

        def measured() -> list[float | None]:
            inputs = on_device(self._prepare(asked.model, asked.image).tensor[None], adapter.module)
            predict = _Predict(adapter)
            with self._turn, evaluating(adapter.module), without_gradients(adapter.module):
                return [
                    None
                    if record.versus is not None or record.flaw is not None or not adapter.has_probabilities
                    else float(
                        polarity(
                            predict,
                            inputs,
                            torch.tensor(np.array(record.map))[None].to(inputs.device),
                            torch.tensor([record.target], device=inputs.device),
                        )
                    )
                    for record in records
                ]

        return self._polarities.got(asked, measured)

    def file(
        self, kind: Literal["image", "map", "record"], asked: Question, number: int, opacity: float | None
    ) -> tuple[str, bytes]:
        """Return the name and the content of a file to keep: the overlay, the raw map or the record of one map.

        Args:
            kind: which.
            asked: what the maps were asked for with.
            number: of the map, from 0.
            opacity: of the overlay; see :func:`xai_abn.rendering.overlay`.

        Raises:
            InvalidInputError: there are not so many maps.
        """
        records = self._explain(asked)
        if number >= len(records):
            raise InvalidInputError(f"map must be below {len(records)}, got {number}")
        record = records[number]
        stem = f"{Path(self._source(asked.image)[0].removeprefix(EXAMPLE_PREFIX)).stem}-{record.method}"
        if kind == "image":
            return f"{stem}.png", png_bytes(record.overlay(opacity=opacity))
        if kind == "record":
            return f"{stem}.json", json.dumps(record.to_dict(), indent=2).encode()
        buffer = io.BytesIO()
        np.save(buffer, record.map)
        return f"{stem}.npy", buffer.getvalue()

    def edit(self, model: str, image: str, target: int, marks: bytes) -> dict[str, Any]:
        """Return what both branches answer if an image is marked so, beside what they answer by themselves.

        Args:
            model: name of the model.
            image: the image.
            target: index of the class that the marks are for.
            marks: a byte for each pixel of the input: not marked, look here, not here; first for M, then as many for
                the class map. The prediction follows the marks on M, and the attention branch those on the class map.
        """
        adapter, edit = self._offered(model).adapter, self._edit(model, image)
        painted = self._marks(adapter, edit.image, marks)
        grid, own = edit.grid, edit.own
        by_attention, by_class = (
            edit.marked_cells(target, _cells(look, grid), _cells(avoid, grid), on)
            for on, (look, avoid) in zip(MARKED_MAPS, painted.values(), strict=True)
        )

        def map_of(maps: torch.Tensor) -> str:
            return _encoded((maps[target] if maps.dim() == 3 else maps).numpy(force=True))

        return {
            "grid": list(grid),
            "attention_map": map_of(by_attention.attention_map),
            "class_map": map_of(by_class.class_maps),
            "own_attention_map": map_of(own.attention_map),
            "own_class_map": map_of(own.class_maps),
            "prediction": _changes(adapter, own.probabilities, by_attention.probabilities, target),
            "attention": _changes(adapter, own.attention_probabilities, by_class.attention_probabilities, target),
        }

    def corrections(self, model: str, image: str) -> list[dict[str, Any]]:
        """Return the saved corrections of an image."""
        loaded = self._load(image)
        return [
            {"label": c.label, "target": _target_or_none(c, self._offered(model).adapter), "kind": c.kind, "on": c.on}
            | {"time": c.time, "model": c.model, "file": c.path.name}
            for c in Corrections(self._folder).of(loaded)
        ]

    def marks(self, model: str, image: str, target: int) -> bytes:
        """Return the saved marks of an image for a class, as :meth:`edit` takes them."""
        adapter, prepared, loaded = self._offered(model).adapter, self._prepare(model, image), self._load(image)
        grid = (prepared.tensor.shape[1], prepared.tensor.shape[2])
        label = adapter.label(target)
        saved = [c for c in Corrections(self._folder).of(loaded) if c.label == label]
        layers = []
        for on in _marked_maps(adapter):
            layers.append(np.zeros(grid, np.uint8))
            for correction in saved:
                if correction.on in (on, None):
                    value = LOOKED if correction.kind == LOOK else AVOIDED
                    layers[-1][prepared.seen_of(correction.mask, grid)] = value
        return b"".join(layer.tobytes() for layer in layers)

    def save(self, model: str, image: str, target: int, marks: bytes) -> list[dict[str, Any]]:
        """Save the marks of an image for a class, and return the corrections of the image."""
        adapter, prepared = self._offered(model).adapter, self._prepare(model, image)
        painted = self._marks(adapter, prepared, marks)
        name, source = self._source(image)
        with self._writing:
            corrections = Corrections(self._folder)
            for on, parts in painted.items():
                look, avoid = (prepared.on_image(part) if part.any() else None for part in parts)
                corrections.mark(source, target, look, avoid, on=on, model=adapter, name=name)
        return self.corrections(model, image)

    def queue(self, model: str) -> dict[str, Any]:
        """Return the served images, the most suspicious first; they are examined from the first call on.

        Returns:
            How many are done, of how many; those that failed with the reason; and the most suspicious.
        """
        adapter = self._offered(model).adapter
        with self._writing:
            queue = self._queues.setdefault(model, _Queue(adapter, self.served))
        return queue.state()

    def _marks(
        self, adapter: ModelAdapter, prepared: PreparedImage, marks: bytes
    ) -> dict[MarkedMap | None, tuple[np.ndarray, np.ndarray]]:
        """Return by map where bytes mark to look, and where not to, each (H, W) bool of the input."""
        maps, (height, width) = _marked_maps(adapter), prepared.tensor.shape[1:]
        size = len(maps) * height * width
        if len(marks) != size or max(marks) > AVOIDED:
            raise InvalidInputError(f"marks must be {size} bytes, 0, 1 or 2 each; got {len(marks)}")
        layers = np.frombuffer(marks, np.uint8).reshape(len(maps), height, width)
        return {on: (layer == LOOKED, layer == AVOIDED) for on, layer in zip(maps, layers, strict=True)}

    def _offered(self, name: str) -> OfferedModel:
        if name not in self._models:
            raise UnknownNameError("model", name, self._models)
        return self._models[name]

    def _source(self, image: str) -> tuple[str, str | bytes | LoadedImage]:
        """Return the name of an image and what it is: a path, ``example:NAME``, bytes, or pixels."""
        if image in self.served:
            sample = self.served[image]
            return sample.source, sample.source if Path(sample.source).is_file() and sample.upright else sample.load()
        if image.startswith(EXAMPLE_PREFIX) and image[len(EXAMPLE_PREFIX) :] in EXAMPLES:
            return image, image
        upload = self._uploads.get(image)
        if upload is None:
            raise UnknownImageError("image", image, [], "Send it again.")
        return upload.name, upload.content

    def _load(self, image: str) -> LoadedImage:
        name, source = self._source(image)
        if isinstance(source, LoadedImage):
            return source
        return decode_image(source, name) if isinstance(source, bytes) else load_image(source)

    def _prepare(self, model: str, image: str) -> PreparedImage:
        adapter = self._offered(model).adapter
        return self._prepared.got((model, image), lambda: adapter.preprocess(self._load(image)))

    def _edit(self, model: str, image: str) -> EditableImage:
        adapter, prepared = self._offered(model).adapter, self._prepare(model, image)
        return self._edits.got((model, image), lambda: adapter.edit(prepared))

    def _explain(self, asked: Question) -> list[Explanation]:
        adapter, prepared = self._offered(asked.model).adapter, self._prepare(asked.model, asked.image)
        known = [method["name"] for method in self._offered(asked.model).methods]
        for name in asked.methods:  # without options, which could ask for hours of work
            if name not in known:
                raise UnknownNameError("method", name, known)

        def made() -> list[Explanation]:
            explainers = make_explainers(adapter, asked.methods)
            with self._turn:
                (result,) = explain_batch(adapter, [prepared], explainers, [asked.targets])
            if isinstance(result, XaiAbnError):
                raise result
            return list(result.values())

        return self._explained.got(asked, made)

    def _python(self, asked: Question, name: str, first: Explanation) -> str:
        """Return the code that gives the same maps, and the first of them."""
        target, versus, *also = (_name_of(self._offered(asked.model).adapter, index) for index in asked.classes)
        text = repr(target) if versus is None else f"xai_abn.Difference({target!r}, versus={versus!r})"
        if also:
            text = f"[[{', '.join([text, *map(repr, also)])}]]"
        wanted = "" if asked.targets == [None] else f", {text}"
        key = (first.method, first.label) if also and first.class_specific else first.method
        return (
            f"{self._loading(asked.model)}"
            f"result = xai_abn.explain(model, {name!r}, {list(asked.methods)!r}{wanted})\n"
            f"record = result[{key!r}]\n"
            "print(record.answer, record.map.shape)\n"
        )

    def _edit_python(self, model: str, name: str, target: int) -> str:
        """Return the code that gives the answers to the saved marks."""
        label = self._offered(model).adapter.label(target)
        return (
            f"{self._loading(model)}"
            f"saved = xai_abn.Corrections({str(self._folder)!r}).of({name!r})\n"
            f"marks = {{(one.on, one.kind): one.mask for one in saved if one.label == {label!r}}}\n"
            f"edit = model.edit({name!r})\n"
            f"m, class_map = (\n"
            f"    edit.marked({target}, look=marks.get((on, {LOOK!r})), avoid=marks.get((on, {AVOID!r})), on=on)\n"
            f"    for on in {MARKED_MAPS}\n"
            ")\n"
            f"print(edit.own.probabilities[{target}], m.probabilities[{target}])\n"
            f"print(edit.own.attention_probabilities[{target}], class_map.attention_probabilities[{target}])\n"
        )

    def _loading(self, model: str) -> str:
        """Return the code that loads a model."""
        arguments = self._offered(model).arguments
        if arguments is None:
            return "import xai_abn\n\nmodel = ...  # as you made it\n"
        more = "".join(f", {key}={value!r}" for key, value in arguments.items())
        return f"import xai_abn\n\nmodel = xai_abn.load_model({model!r}{more})\n"

    def _command(self, asked: Question, name: str) -> str | None:
        """Return the command that gives the same maps; None for a model that it does not know."""
        offered = self._offered(asked.model)
        if offered.arguments is None or (asked.versus is not None and asked.also):
            return None
        words = ["xai-abn", "explain", name, "--model", asked.model]
        for option, value in offered.arguments.items():
            text = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
            words += [f"--{option.replace('_', '-')}", text]
        words += ["--method", ",".join(asked.methods)]
        for index in (asked.target, *asked.also):
            words += [] if index is None else ["--target", str(_name_of(offered.adapter, index))]
        words += [] if asked.versus is None else ["--versus", str(_name_of(offered.adapter, asked.versus))]
        return shlex.join(words)


class _Predict:
    """The logits of inputs (N, C, H, W), as metrics ask for them, with the model's own probabilities of logits."""

    def __init__(self, model: ModelAdapter) -> None:
        self.adapter, self.probabilities = model, model.probabilities

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.adapter.logits_of(self.adapter.module(inputs))


class _Queue:
    """The served images, examined one after the other in a thread of its own."""

    def __init__(self, model: ModelAdapter, served: Mapping[str, Sample]) -> None:
        self._model, self._served = model, served
        self._found: dict[str, Suspicion] = {}
        self._failed: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        for image, sample in self._served.items():
            try:
                found = suspicion_of(self._model, self._model.preprocess(sample.load()), sample)
                with self._lock:
                    self._found[image] = replace(found, name=image)
            except XaiAbnError as error:
                with self._lock:
                    self._failed.append({"name": sample.source, "error": error.line})

    def state(self) -> dict[str, Any]:
        with self._lock:
            if self._thread.ident is None:
                self._thread.start()
            found, failed = list(self._found.values()), list(self._failed)
        rows = [
            {
                "image": one.name,
                "name": self._served[one.name].source,
                "label": one.label,
                "probability": _number(one.probability),
                "score": one.score,
                "reasons": one.reasons,
                "like": one.like and self._served[one.like].source,
            }
            for one in sorted_by_suspicion(found)[:SHOWN]
        ]
        return {"done": len(found) + len(failed), "total": len(self._served), "failed": failed[:SHOWN], "rows": rows}


def what_it_says(explainer: Explainer, model: ModelAdapter, label: str) -> str:
    """Return in a sentence or two what a map can tell, and what it cannot."""
    if explainer.baseline:
        return "This map ignores the network. A method should do better than this."
    if explainer.name == "abn" and not explainer.is_class_specific(model):
        return (
            "This map weighted the features of this prediction. It is one map for all classes, so it cannot tell which "
            "class a bright place supports. Dark places may have contributed as well."
        )
    if explainer.name == "abn-class":
        return (
            f"The evidence for and against {label} in the attention branch. It does not explain the prediction "
            "itself, which comes from the perception branch."
        )
    if explainer.name == "abn-mask":
        return (
            f"The part that must stay visible so that {label} is predicted, as learned by a branch beside the network. "
            "It is dark where the network does not see the class. It does not prove that the network is right."
        )
    if not explainer.is_class_specific(model):
        return "Where the network reacted most, for any class. It cannot tell what supported a class."
    if explainer.grid in ("layer", "attention branch"):
        return (
            f"Where the network found evidence for {label}, in cells of a layer that each see a large part of the "
            "image. It does not prove that the network is right, or right for the right reason."
        )
    return (
        f"How much the score of {label} depends on each place of the image. It cannot show places that only count "
        "together, and it does not prove that the network is right."
    )


def _name_of(model: ModelAdapter, index: int | None) -> int | str | None:
    """Return the label of a class, or its index where the label is not its own."""
    if index is None or model.labels is None:
        return index
    label = model.label(index)
    same = [other for other in model.labels if other.casefold() == label.casefold()]
    return label if len(same) == 1 else index


def _marked_maps(model: ModelAdapter) -> tuple[MarkedMap | None, ...]:
    """Return the maps that are marked apart; a model without attention map has marks for every map alone."""
    return MARKED_MAPS if model.uses_attention_map else (None,)


def _changes(model: ModelAdapter, before: torch.Tensor, after: torch.Tensor, target: int) -> list[dict[str, Any]]:
    """Return the most probable classes before and after, and the target, with both probabilities."""
    number = min(TOP, len(before))
    indices = {*before.topk(number).indices.tolist(), *after.topk(number).indices.tolist(), target}
    rows = [
        {"target": k, "label": model.label(k), "before": _number(float(before[k])), "after": _number(float(after[k]))}
        for k in indices
    ]
    return sorted(rows, key=lambda row: -(row["after"] or 0))


def _cells(part: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the share of each cell (h, w) that is marked in a mask (H, W)."""
    shares: np.ndarray = cv2.resize(part.astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA)
    return shares


def _target_or_none(correction: Any, model: ModelAdapter) -> int | None:
    try:
        return int(correction.target_in(model))
    except XaiAbnError:
        return None


def _colors() -> str:
    """Return the default colormap, 256 colors from low to high, as base64 of RGB."""
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8), COLORMAPS[DEFAULT_COLORMAP])
    return base64.b64encode(cv2.cvtColor(ramp, cv2.COLOR_BGR2RGB).tobytes()).decode()


def _encoded(values: np.ndarray) -> str:
    """Return a map as base64 of little-endian float32, row by row."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
