"""Base class and registry of explainers, and their specifications such as ``"rise:masks=500,seed=1"``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from xai_abn.errors import InvalidInputError, UnknownNameError, UnsupportedModelError, shown
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.passes import Passes
from xai_abn.models.targets import checked_targets, select_targets
from xai_abn.networks.tracing import as_unsupported
from xai_abn.registry import Registry
from xai_abn.settings import Settings, parse_options, split_specs

#: How many times something is done or drawn: bounded, so that a slip of the hand does not fill the memory.
Count: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000)]
#: Fewer images never pay for the trial of a backend.
FEW = 64
#: A seed of random numbers.
Seed: TypeAlias = Annotated[int, Field(ge=-(2**31), lt=2**32)]


def _separate(names: object) -> object:
    """Take names joined by ``+`` apart."""
    listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return tuple(part for name in names for part in name.split("+")) if listed else names  # type: ignore[attr-defined]


def _at_least_two(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if names is not None and len(set(names)) < 2:
        raise InvalidInputError(f"layers must name at least two different layers, got {', '.join(names) or 'none'}")
    return names


#: Names of several layers; as text, they are joined by ``+``.
LayerNames: TypeAlias = Annotated[tuple[str, ...] | None, BeforeValidator(_separate), AfterValidator(_at_least_two)]


class Explainer(Settings, ABC):
    """A method that turns a forward pass into maps. A subclass implements :meth:`compute`.

    An explainer is an immutable record. Its options are annotated fields, which makes them available by name, as in
    ``get("rise")(masks=500)``, and in specifications, as in ``"rise:masks=500"``. An option that does not affect the
    result, such as a batch size, is declared with ``Field(exclude=True)`` and is not recorded.

    Attributes:
        name: registered name, set by :func:`register`.
        version: raised when the computation changes, so that benchmarks do not mix old and new values.
        needs_gradient: whether :meth:`compute` calls ``forward_pass.gradients``.
        needs_attention: whether :meth:`compute` reads ``forward_pass.attentions``.
        class_specific: whether the map depends on the target; see also :meth:`is_class_specific`.
        source: the paper.
        maps_read: names of the ABN's maps that :meth:`compute` reads, if it reads nothing else of a pass than these,
            the logits and the layers of :meth:`layers_read`, so that any way to compute them serves; else None.
        baseline: whether the method ignores the network and only serves for comparison.
        reads_layer: whether the method reads a layer of the network.
        limits: the smallest and the largest value that a map is drawn with; None: those of the map.
        no_graph: why its maps cannot be differentiated by the network's weights; empty if they can.

    Examples:
        >>> from xai_abn.explainers import Explainer, register
        >>> @register("activation-mean")
        ... class ActivationMean(Explainer):
        ...     class_specific = False
        ...     def compute(self, forward_pass, targets):
        ...         return forward_pass.activations(self.layer_of(forward_pass.model)).mean(dim=1)
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    needs_gradient: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = False
    class_specific: ClassVar[bool] = True
    source: ClassVar[str] = ""
    maps_read: ClassVar[tuple[str, ...] | None] = None
    baseline: ClassVar[bool] = False
    reads_layer: ClassVar[bool] = True
    limits: ClassVar[tuple[float, float] | None] = None
    no_graph: ClassVar[str] = "it does not say that they can be"

    layer: str | None = Field(None, description="Name of the layer to read; default: the model's target layer.")

    def explain(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return one map per image, in the method's own units, not scaled.

        Args:
            forward_pass: a pass that captured :meth:`layers_read`, with gradients if ``needs_gradient``.
            targets: (N,) class indices, or directions (N, K), such as one class minus another.

        Returns:
            (N, h, w) maps, or (N, d, h, w) of volumes, at the resolution of the method: that of the layer or of the
            input.

        Raises:
            UnsupportedModelError: the method does not apply to this model; the message says why.
            InvalidInputError: the targets have another shape, or one does not exist.
        """
        with self._running_on(forward_pass.model):
            self.check_on(forward_pass.model)
            return self._maps(forward_pass, targets)

    def _maps(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return what :meth:`compute` does, for targets that exist, and refuse anything but a map for each image."""
        targets, model = checked_targets(targets, forward_pass.logits), forward_pass.model
        if forward_pass.create_graph and self.no_graph:
            raise InvalidInputError(
                f"the maps of {self.name} cannot be differentiated: {self.no_graph}; use grad-cam, or leave "
                "create_graph out"
            )
        if self.is_given_by(model):
            given: Tensor = model.module.maps_of(self.name, forward_pass.inputs)  # type: ignore[operator]
            maps = select_targets(given, targets) if self.is_class_specific(model) else given[:, 0]
        else:
            maps = self.compute(forward_pass, targets)
        axes = len(forward_pass.size)
        if not isinstance(maps, Tensor) or maps.dim() != axes + 1 or len(maps) != len(forward_pass) or not maps.numel():
            got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            form = "(N, h, w)" if axes == 2 else "(N, d, h, w)"
            raise InvalidInputError(
                f"{self.name} must compute maps {form}, one of each of {len(forward_pass)} images, got {got}"
            )
        if forward_pass.create_graph and not maps.requires_grad:
            raise InvalidInputError(
                f"the maps of {self.name} depend on no weight of {forward_pass.model.name} that requires a gradient; "
                "switch it on for the layers that compute them, or use another method"
            )
        return maps

    def _running_on(self, model: ModelAdapter) -> AbstractContextManager[None]:
        """Return a context in which any exception of a network becomes an error that says what to try instead."""
        unlike = self.needs_gradient or model.black_box
        other = "occlusion, which needs no gradients" if unlike else "grad-cam, which runs it once"
        return as_unsupported(f"{self.name} fails on {model.name}; try {other}")

    @abstractmethod
    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Compute the maps that :meth:`explain` returns, for a model that :meth:`check` accepts.

        ``forward_pass.gradients``, ``.scores`` and ``.weights`` accept both forms of ``targets``.
        """

    def check(self, model: ModelAdapter) -> None:
        """Refuse a model that this method cannot explain, without running a pass.

        Raises:
            UnknownNameError: the model has no layer of this name; the message suggests the nearest.
            UnsupportedModelError: the method does not apply; the message says why and what to use instead.
        """
        if self.needs_gradient or self.needs_attention or self.reads_layer:
            needs = "layers" if self.reads_layer else "gradients" if self.needs_gradient else "attention"
            model.refuse_black_box(f"{self.name} reads {needs} of the network")
        if self.layer is not None and not self.reads_layer:
            raise UnsupportedModelError(f"{self.name} reads no layer (got {self.layer!r}); leave the layer out")
        for layer in self.layers_read(model):
            model.check_layer(layer)

    def check_on(self, model: ModelAdapter) -> None:
        """Refuse a model that this method cannot explain, unless it is an ONNX file that outputs the method's maps."""
        if not self.is_given_by(model):
            self.check(model)

    def is_given_by(self, model: ModelAdapter) -> bool:
        """Return whether a model is an ONNX file that outputs the maps of this method, of the layer asked for."""
        own = model.maps_given.get(self.name)
        return own is not None and self.layer in (None, own) and not (self.changed().keys() - {"layer"})

    def is_class_specific(self, model: ModelAdapter) -> bool:
        """Return whether the map of this model depends on the target; by default ``class_specific``."""
        return self.class_specific

    def layers_read(self, model: ModelAdapter) -> tuple[str, ...]:
        """Return the names of the layers that the forward pass must capture."""
        return (self.layer_of(model),) if self.reads_layer and not self.is_given_by(model) else ()

    def layer_of(self, model: ModelAdapter) -> str:
        """Return the layer this explainer reads, or what it reads instead; recorded with its maps."""
        if self.is_given_by(model):
            return model.maps_given[self.name]
        return "input" if not self.reads_layer else model.target_layer if self.layer is None else self.layer

    @property
    def cost(self) -> str:
        """What the map of one image costs beyond the shared forward pass: passes through the network, in words."""
        return "partial backward" if self.needs_gradient else "none"

    @property
    def grid(self) -> str:
        """What the values of a map lie on, and so how fine it is, in words: such as ``"layer"`` for its positions."""
        return "layer" if self.reads_layer else "input"

    @property
    def options(self) -> dict[str, Any]:
        """All options that affect the result, and the layer if one is given, as values that JSON can hold."""
        return {name: value for name, value in self.to_dict().items() if (name, value) != ("layer", None)}

    @property
    def spec(self) -> str:
        """Name and non-default options, as in ``"rise:masks=500,seed=1"``; the key in results."""
        options = ",".join(f"{name}={_option_text(value)}" for name, value in self.changed().items())
        return f"{self.name}:{options}" if options else self.name

    def identity(self, model: ModelAdapter) -> dict[str, Any]:
        """Return everything that determines the maps of a model: name, version, options and layer."""
        return {"name": self.name, "version": self.version, "options": self.options, "layer": self.layer_of(model)}

    @classmethod
    def describe(cls) -> list[tuple[str, str, str]]:
        """Return the name, the default as text and the description of each option."""
        return [row for row in super().describe() if cls.reads_layer or row[0] != "layer"]


def _option_text(value: object) -> str:
    """Return the value of an option as a specification writes it: ``2`` for 2.0, and lists joined by ``+``."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "+".join(map(_option_text, value)) if isinstance(value, list) else str(value)


def _named_class(name: str, item: object) -> str:
    """Give a class the name of its entry point, and refuse anything but a subclass of Explainer."""
    if not (isinstance(item, type) and issubclass(item, Explainer)):
        raise InvalidInputError(f"{name!r} must be a subclass of xai_abn.explainers.Explainer, got {item!r}")
    item.name = vars(item).get("name") or name
    return item.name


EXPLAINERS: Registry[type[Explainer]] = Registry("method", "xai_abn.explainers", _named_class)

E = TypeVar("E", bound=type[Explainer])


def register(name: str) -> Callable[[E], E]:
    """Return a class decorator that registers an explainer under ``name``.

    Raises:
        InvalidInputError: the name is taken.
    """

    def add(kind: E) -> E:
        EXPLAINERS.register(name)(kind)
        kind.name = name
        return kind

    return add


def names() -> list[str]:
    """Return the names of all explainers, including installed plug-ins."""
    return EXPLAINERS.names()


def get(name: str) -> type[Explainer]:
    """Return the explainer class called ``name``.

    Raises:
        UnknownNameError: there is no such class; the message suggests the nearest names.
    """
    return EXPLAINERS[name]


def parse_spec(spec: str, layer: str | None = None) -> Explainer:
    """Return the explainer that a specification names: ``"cam"``, or with options ``"rise:masks=500,seed=1"``.

    Args:
        spec: the name of the method and, after a colon, its options. Items of a list are joined by ``+``.
        layer: the layer to read.

    Raises:
        UnknownNameError: an unknown method or option; the message suggests the nearest names.
        InvalidInputError: the value of an option has the wrong type or is out of range.
    """
    if not isinstance(spec, str):
        raise _no_method(spec)
    name, _, text = spec.partition(":")
    kind = get(name.strip())
    try:
        options = parse_options(text)
        known = [row[0] for row in kind.describe()]
        for option in options:
            if option not in kind.model_fields and not known:
                raise InvalidInputError(f"it has no options, leave out {option}")
            if option not in kind.model_fields:
                raise UnknownNameError(f"option of {name}", option, known)
        return kind(**({"layer": layer} | options))
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}") from None


def _no_method(given: object) -> InvalidInputError:
    """Return the error for something that does not name a method."""
    instead = f"; give {given.__name__}()" if isinstance(given, type) and issubclass(given, Explainer) else ""
    return InvalidInputError(
        f"a method must be a specification such as 'grad-cam' or an Explainer such as GradCAM(), got {shown(given)}"
        f"{instead}"
    )


def _usual(model: ModelAdapter) -> str:
    """Return the method that is used for a model if none is named."""
    if model.black_box:
        return "occlusion"
    if getattr(model.module, "mask_branch", None) is not None:
        return "abn-mask"
    return "abn" if model.uses_attention_map else "grad-cam"


def make_explainers(
    model: ModelAdapter, methods: str | Explainer | Sequence[str | Explainer] | None, layer: str | None = None
) -> list[Explainer]:
    """Make the explainers that specifications name, and refuse those that do not apply to the model.

    Args:
        model: the model to explain.
        methods: specifications, one or several in a string, or :class:`Explainer` objects; default: ``"abn-mask"`` for
            an Attention Branch Network with a mask branch, ``"abn"`` for another that uses its map, for an ONNX file
            the method whose maps it outputs or ``"occlusion"``, else ``"grad-cam"``.
        layer: the layer to read, for methods given by name.

    Raises:
        UnknownNameError: an unknown method, option or layer; the message suggests the nearest names.
        UnsupportedModelError: a method does not apply to the model.
        InvalidInputError: no method, one given twice, or an option with a wrong value.
    """
    if methods is None:
        methods = next(iter(model.maps_given), _usual(model))
    several = isinstance(methods, Iterable) and not isinstance(methods, (str, bytes, Explainer, Mapping))
    listed: list[Any] = list(methods) if several else [methods]
    made: list[Explainer] = []
    for method in listed:
        parts = split_specs(method) if isinstance(method, str) else [method]
        made += [part if isinstance(part, Explainer) else parse_spec(part, layer) for part in parts]
    specs = [explainer.spec for explainer in made]
    if not made or len(set(specs)) < len(specs):
        raise InvalidInputError(f"give at least one method and each only once, got {', '.join(specs) or 'none'}")
    for explainer in made:
        with explainer._running_on(model):
            explainer.check_on(model)
    return made


def passes_of(model: ModelAdapter, methods: Sequence[Explainer], images: int) -> Passes | None:
    """Return the passes of many images by the quickest backend, or None where only the network serves.

    Args:
        model: the model.
        methods: from :func:`make_explainers`.
        images: how many will be explained.
    """
    if model.backend is None and images < FEW:
        return None
    read = [None if method.is_given_by(model) else method.maps_read for method in methods]
    if model.black_box or model.gives_map or model.detects or model.needs_gradients or None in read:
        return None
    layers = [layer for method in methods for layer in method.layers_read(model)]
    return Passes(model, layers, [name for names in read for name in names or ()], images)


def run_pass(
    model: ModelAdapter,
    inputs: Tensor,
    methods: Iterable[Explainer],
    sources: Sequence[str] = (),
    *,
    create_graph: bool = False,
    parts: bool = False,
) -> ForwardPass:
    """Run the network once on (N, C, H, W) or (N, C, D, H, W) and keep everything that the methods need.

    ``sources``, ``create_graph`` and ``parts`` are those of :class:`ForwardPass`.
    """
    methods = list(methods)
    return ForwardPass(
        model,
        inputs,
        [layer for method in methods for layer in method.layers_read(model)],
        any(method.needs_gradient for method in methods),
        attentions=any(method.needs_attention for method in methods),
        create_graph=create_graph,
        sources=sources,
        parts=parts,
    )
