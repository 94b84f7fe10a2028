"""Methods of other libraries, and maps from files, as explainers."""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from xai_abn.errors import InvalidInputError
from xai_abn.explainers.base import Explainer
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass


@cache
def _with_version(package: str) -> str:
    """Return a package's name with its version, if it is installed with its metadata."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} of an unknown version"


class ExternalExplainer(Explainer):
    """An explainer that is not registered: an object with a name of its own, used in place of a specification."""

    no_graph = "they come from elsewhere, without a graph"

    _name: str = PrivateAttr("")

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name in results."""
        return self._name

    @property
    def spec(self) -> str:
        """The name alone, because no text can represent the options."""
        return self._name


def sum_of_channels(attributions: Tensor) -> Tensor:
    """Return attributions (N, C, h, w) summed over C, signed: (N, h, w)."""
    return attributions.sum(dim=1)


class LibraryExplainer(ExternalExplainer):
    """A method of another library. It runs on a copy of the network, so the network itself is never changed.

    The copy shares the memory of the weights, has frozen parameters and is in evaluation mode.

    Args:
        name: the name in results. A benchmark stores values under it; use another name for other options.
        make: class or function that makes the object of the library.
        layer: name of the layer to read.
        options: passed on in every call.
    """

    #: The name of the library on PyPI.
    package: ClassVar[str]

    _make: Callable[..., Any]
    _options: dict[str, Any]

    def __init__(self, name: str, make: Callable[..., Any], layer: str | None = None, **options: Any) -> None:
        super().__init__(layer=layer)
        self._name, self._make, self._options = name, make, options

    @property
    def options(self) -> dict[str, Any]:
        """The library with its version, the method and the options."""
        options = {name: _recorded(value) for name, value in sorted(self._options.items())}
        return {"library": _with_version(self.package), "method": _recorded(self._make), **options}

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of the library for ``targets``, (N, h, w).

        Raises:
            InvalidInputError: ``targets`` are directions and the library takes indices, or it returned another shape.
        """
        inputs = forward_pass.inputs.detach().clone().requires_grad_()
        with torch.enable_grad():
            maps = self.call_library(forward_pass, inputs, targets).detach().to(forward_pass.logits)
        if maps.dim() != len(forward_pass.size) + 1 or len(maps) != len(forward_pass):
            raise InvalidInputError(f"{self.name} must give maps ({len(forward_pass)}, h, w), got {tuple(maps.shape)}")
        return maps

    @abstractmethod
    def call_library(self, forward_pass: ForwardPass, inputs: Tensor, targets: Tensor) -> Tensor:
        """Call the library with inputs (N, 3, H, W) that require a gradient; return (N, h, w)."""

    def class_indices(self, targets: Tensor) -> Tensor:
        """Return the targets if they are class indices.

        Raises:
            InvalidInputError: they are directions.
        """
        if targets.is_floating_point():
            raise InvalidInputError(
                f"{self.name} takes class indices (N,), got directions {tuple(targets.shape)}; "
                f"{self.package} does not support directions, but GradCAMExplainer does"
            )
        return targets


class CaptumExplainer(LibraryExplainer):
    """A method of captum.

    Args:
        name: see :class:`LibraryExplainer`.
        make: makes captum's object from the network, and with ``layer`` from the network and that layer: one of its
            classes, or a function such as ``lambda network: NoiseTunnel(Saliency(network))``.
        layer: for layer methods such as ``LayerGradCam``.
        reduce: turns attributions (N, C, h, w) into maps (N, h, w).
        options: of captum's ``attribute``.

    Examples:
        >>> from captum.attr import IntegratedGradients
        >>> from xai_abn.explainers.external import CaptumExplainer
        >>> explainer = CaptumExplainer("integrated-gradients", IntegratedGradients, n_steps=20)
    """

    package = "captum"
    source = "captum"

    _reduce: Callable[[Tensor], Tensor]

    def __init__(
        self,
        name: str,
        make: Callable[..., Any],
        layer: str | None = None,
        reduce: Callable[[Tensor], Tensor] = sum_of_channels,
        **options: Any,
    ) -> None:
        super().__init__(name, make, layer, **options)
        self._reduce = reduce

    @property
    def options(self) -> dict[str, Any]:
        """The library with its version, the method and the options."""
        return {**super().options, "reduce": _recorded(self._reduce)}

    def check(self, model: ModelAdapter) -> None:
        """Refuse a layer that does not exist."""
        if self.layer is not None:
            model.check_layer(self.layer)

    def layers_read(self, model: ModelAdapter) -> tuple[str, ...]:
        """Return nothing: captum runs the network itself."""
        return ()

    def layer_of(self, model: ModelAdapter) -> str:
        """Return the layer given, else ``"input"``."""
        return self.layer or "input"

    def call_library(self, forward_pass: ForwardPass, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return captum's attributions, reduced to maps."""
        classifier, network = _copy_network(forward_pass.model)
        layers = () if self.layer is None else (network.get_submodule(self.layer),)
        method = self._make(classifier, *layers)
        return self._reduce(method.attribute(inputs, target=self.class_indices(targets), **self._options))


class GradCAMExplainer(LibraryExplainer):
    """A method of the package grad-cam (``pytorch_grad_cam``). Its maps have the size of the input and are in [0, 1].

    Args:
        name: see :class:`LibraryExplainer`.
        make: one of its classes; use ``functools.partial`` to pass more arguments.
        layer: the layer to read; default: the model's target layer.
        options: of the call.

    Examples:
        >>> from pytorch_grad_cam import LayerCAM
        >>> from xai_abn.explainers.external import GradCAMExplainer
        >>> explainer = GradCAMExplainer("layer-cam", LayerCAM)
    """

    package = "grad-cam"
    source = "grad-cam"

    def call_library(self, forward_pass: ForwardPass, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return grad-cam's maps."""
        classifier, network = _copy_network(forward_pass.model)
        layer = self.layer_of(forward_pass.model)
        reshape = forward_pass.layout(layer).to_maps
        scores = [_TargetLogit(target) for target in targets]
        with self._make(classifier, [network.get_submodule(layer)], reshape_transform=reshape) as method:
            return torch.as_tensor(method(inputs, targets=scores, **self._options))
        raise InvalidInputError(f"{self.name} failed inside grad-cam, which printed the reason")


class TorchCAMExplainer(LibraryExplainer):
    """A method of torchcam. Its maps have the size of the layer and are not normalized.

    Args:
        name: see :class:`LibraryExplainer`.
        make: one of its classes; use ``functools.partial`` to pass more arguments.
        layer: the layer to read; default: the model's target layer.
        options: of the extractor's call.

    Examples:
        >>> from torchcam.methods import SmoothGradCAMpp
        >>> from xai_abn.explainers.external import TorchCAMExplainer
        >>> explainer = TorchCAMExplainer("smooth-grad-cam++", SmoothGradCAMpp)
    """

    package = "torchcam"
    source = "torchcam"

    def call_library(self, forward_pass: ForwardPass, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return torchcam's maps."""
        classifier, network = _copy_network(forward_pass.model)
        layer = self.layer_of(forward_pass.model)
        layout = forward_pass.layout(layer)
        reshape = {} if layout.kind == "channels-first" else {"reshape_transform": layout.to_maps}
        indices = self.class_indices(targets).tolist()
        with self._make(classifier, network.get_submodule(layer), **reshape) as method:
            maps: Tensor = method(indices, classifier(inputs), normalized=False, **self._options)[0]
        return maps


class _TargetLogit(nn.Module):
    """The score that grad-cam differentiates: a class's logit, or the sum of logits (K,) weighted by a direction."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, logits: Tensor) -> Tensor:
        if self.target.is_floating_point():
            return (logits * self.target.to(logits)).sum(dim=-1)
        return logits[..., int(self.target)]


class _Logits(nn.Module):
    """A network as a function from (N, 3, H, W) to logits (N, K), wherever they are in its output."""

    def __init__(self, network: nn.Module, model: ModelAdapter) -> None:
        super().__init__()
        self.network = network
        self.logits_of = model.logits_of

    def forward(self, images: Tensor) -> Tensor:
        return self.logits_of(self.network(images))


def _copy_network(model: ModelAdapter) -> tuple[nn.Module, nn.Module]:
    """Return a copy as a function from images to logits, and the copied network itself, which may be the same."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.module.parameters()}
    network = copy.deepcopy(model.module, shared).eval()
    gives_logits = model.output is None and not model.is_abn
    return (network if gives_logits else _Logits(network, model)), network


def _recorded(value: object) -> Any:
    """Return an option as a value that JSON can hold: itself, or the name of what it is."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__qualname__", None) or repr(value)


class MapFolder(ExternalExplainer):
    """Maps (h, w) from ``.npy`` files named like the images, one per image, for any class.

    The map of ``cats/1.jpg`` is ``cats/1.npy`` in the folder, or else ``1.npy``. A map covers the part of the image
    that the network sees, at any resolution, which must be the same for all.

    Args:
        folder: the folder with the files.
        name: the name in results; default: the name of the folder.
        ending: of the files, such as ``".grad-cam.npy"`` for those of ``xai-abn explain --save-maps``.

    Raises:
        InvalidInputError: there is no such folder, or no such file in it.
    """

    class_specific = False
    source = "maps from files"
    reads_layer = False

    _folder: Path
    _ending: str
    _image_of: dict[Path, str] = PrivateAttr(default_factory=dict)
    _digest: str = PrivateAttr("")

    def __init__(self, folder: str | Path, name: str | None = None, ending: str = ".npy") -> None:
        super().__init__()
        self._folder, self._ending = Path(folder), ending
        self._name = name or self._folder.resolve().name
        files = sorted(self._folder.rglob(f"*{ending}"))
        if not files:
            raise InvalidInputError(f"{folder}: no {ending} files there; give a folder with one map per image")
        content = hashlib.sha256()
        for path in files:
            content.update(path.relative_to(self._folder).as_posix().encode() + b"\0")
            content.update(hashlib.sha256(path.read_bytes()).digest())
        self._digest = content.hexdigest()[:32]

    @property
    def options(self) -> dict[str, Any]:
        """A hash of all files, so that a benchmark notices other maps."""
        return {"files": self._digest}

    def layer_of(self, model: ModelAdapter) -> str:
        """Return what is recorded in place of a layer."""
        return "file"

    def compute(self, forward_pass: ForwardPass, targets: Tensor) -> Tensor:
        """Return the maps of the images, (N, h, w), for any ``targets``.

        Raises:
            InvalidInputError: the names of the images are unknown, as for images that a metric changed; or a map is
                missing, damaged, not (h, w), not finite, or of another shape than the first.
        """
        if len(forward_pass.sources) != len(forward_pass):
            raise InvalidInputError(
                f"{self.name} finds maps by the names of the images, and these images have none; explain files, and "
                "leave out metrics that explain changed images or a changed model"
            )
        maps = [self._read(source) for source in forward_pass.sources]
        for source, values in zip(forward_pass.sources, maps, strict=True):
            if values.shape != maps[0].shape:
                first = forward_pass.sources[0]
                raise InvalidInputError(
                    f"{source}: its map has shape {values.shape}, that of {first} {maps[0].shape}; "
                    f"resize all maps in {self._folder} to one shape"
                )
        return torch.from_numpy(np.stack(maps)).to(forward_pass.logits.device)

    def _read(self, source: str) -> np.ndarray:
        path = self._file(source)
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InvalidInputError(f"{source}: its map {path} cannot be read ({error})") from error
        shape = getattr(values, "shape", "several arrays")
        if len(shape) != 2 or 0 in shape or values.dtype.kind not in "fiub":
            raise InvalidInputError(f"{source}: its map {path} must be numbers (h, w), got {shape}")
        if not np.isfinite(values).all():
            raise InvalidInputError(f"{source}: its map {path} has values that are not finite")
        return np.asarray(values, np.float32)

    def _file(self, source: str) -> Path:
        """Return the file of an image's map; a file belongs to one image only."""
        image = Path(source)
        same_place = image.with_name(image.stem + self._ending)
        places = [] if image.is_absolute() else [self._folder / same_place]
        places.append(self._folder / same_place.name)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise InvalidInputError(f"{source}: no map found at {' or '.join(map(str, dict.fromkeys(places)))}")
        known = self._image_of.setdefault(path, source)
        if not (known.endswith(source) or source.endswith(known)):
            raise InvalidInputError(
                f"{path} belongs to both {known} and {source}; arrange the maps in the same folders as the images"
            )
        return path
