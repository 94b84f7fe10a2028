"""Runs of a network that leave it unchanged and record what each module outputs."""

from __future__ import annotations

import copy
import os
import re
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError
from torch.utils.hooks import RemovableHandle

from xai_abn.errors import InvalidInputError, UnsupportedModelError, XaiAbnError, shown
from xai_abn.networks.layout import Layout, Part, grid_layout, is_ambiguous, misplacement, token_layout

#: Switches that are turned off during a pass.
_SWITCHES = ("training", "grad_checkpointing", "gradient_checkpointing", "memory_efficient")
#: An attribute of a submodule that differs during a pass: its own value, and the other one.
_Changed: TypeAlias = tuple[nn.Module, str, object, object]
#: Networks that are in evaluation mode temporarily: the number of passes that need it, and what they changed.
_EVALUATING: weakref.WeakKeyDictionary[nn.Module, tuple[int, list[_Changed]]] = weakref.WeakKeyDictionary()
_MODES = threading.Lock()
#: Networks that need gradients in their own forward pass, such as one that registers a hook on a tensor there.
NEED_GRADIENTS: weakref.WeakSet[nn.Module] = weakref.WeakSet()
#: Class names of pooling modules, except PoolFormer's blocks.
_POOLING = re.compile(r"pool(ing)?(\dd)?(same)?$", re.IGNORECASE)
#: Where parts of an image or volume are changed: in which quarter of the depth, the rows and the columns.
_PLACES = [(1, 0, 2), (3, 2, 1), (0, 3, 3), (2, 1, 0), (3, 0, 1), (1, 2, 2), (2, 3, 0), (0, 1, 3)]
_LOCKS = (type(threading.Lock()), type(threading.RLock()))


class _Threads:
    """Whether networks were loaded or run on several threads in this process, or in the one that it was forked from.

    After that, OpenMP waits for ever in the forked process.
    """

    used_here = used_before_fork = False

    @classmethod
    def forked(cls) -> None:
        """Note that this process was forked."""
        cls.used_before_fork |= cls.used_here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Threads.forked)


def refuse_fork() -> None:
    """Refuse to load or run a network where torch would hang.

    Raises:
        InvalidInputError: this process was forked from one that had loaded or run a network on several threads.
    """
    if torch.get_num_threads() > 1:
        if _Threads.used_before_fork:
            raise InvalidInputError(
                "this process was forked from one that had used a network, so torch would hang; start processes with "
                "multiprocessing.get_context('spawn'), or call torch.set_num_threads(1) in them"
            )
        _Threads.used_here = True


@contextmanager
def evaluating(module: nn.Module) -> Iterator[list[nn.Module]]:
    """Put the whole module into evaluation mode, and every submodule back into its own mode afterwards.

    Yields :func:`all_modules` of it, since walking over a network takes as long as running a small layer.

    Blocks that would run again for their gradients (timm's checkpointing, torchvision's memory-efficient DenseNet) run
    once: hooks and watches are gone when they run again. Compiled parts run as they are written, because no hooks are
    called inside of them.

    If passes of several threads overlap, the first sets the mode and the last restores it.

    Raises:
        InvalidInputError: see :func:`refuse_fork`.
    """
    refuse_fork()
    members = all_modules(module)
    with _MODES:
        passes, own = _EVALUATING.get(module, (0, []))
        own = own if passes else list(_to_change(members))
        _EVALUATING[module] = (passes + 1, own)
        for m, name, _, value in own:
            setattr(m, name, value)
    try:
        yield members
    finally:
        with _MODES:
            passes, own = _EVALUATING.pop(module)
            if passes > 1:
                _EVALUATING[module] = (passes - 1, own)
            else:
                for m, name, value, _ in own:
                    setattr(m, name, value)


def _to_change(members: Iterable[nn.Module]) -> Iterator[_Changed]:
    """Yield what has to differ in modules during a pass."""
    for m in members:
        own = m.__dict__
        for name in _SWITCHES:
            if own.get(name) is True:
                yield m, name, True, False
        if isinstance(places := own.get("anchors"), Tensor) and places.is_inference():
            # kept by YOLO's head from a pass in inference mode; it makes them again
            yield from ((m, name, own.get(name), None) for name in ("shape", "anchors", "strides"))
        if own.get("_compiled_call_impl") is not None:  # by module.compile()
            yield m, "_compiled_call_impl", own["_compiled_call_impl"], None
        if "_orig_mod" in m._modules and "forward" in own:  # by torch.compile(module)
            yield m, "forward", own["forward"], m.get_submodule("_orig_mod").__call__


@contextmanager
def hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep hooks within a ``with`` block. Give a generator, so that all are removed if one cannot be set."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the name and module of the network and every submodule that hooks can be set on: not of TorchScript."""
    return ((name, m) for name, m in module.named_modules() if not isinstance(m, torch.jit.ScriptModule))


def without_gradients(module: nn.Module) -> torch.no_grad | torch.enable_grad:
    """Return ``torch.no_grad()``, or ``torch.enable_grad()`` for a network that cannot run without gradients."""
    return torch.enable_grad() if module in NEED_GRADIENTS else torch.no_grad()


@contextmanager
def as_unsupported(what: str) -> Iterator[None]:
    """Raise an :class:`UnsupportedModelError` that starts with ``what`` for any other exception inside the block."""
    try:
        yield
    except (XaiAbnError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a network can raise anything
        raise UnsupportedModelError(f"{what}: {_reason(error)} ({type(error).__name__})") from error


def _reason(error: Exception) -> str:
    """Return what an exception says, in at most 200 characters, or what two of autograd's mean."""
    if isinstance(error, CheckpointError) or "use_reentrant=True" in str(error):
        return "it recomputes parts of itself for gradients (torch.utils.checkpoint); switch this off"
    if is_not_differentiable(error):
        return "the scores do not depend on the input in a differentiable way"
    return shown(str(error), 200) or "no reason given"


def is_not_differentiable(error: Exception) -> bool:
    """Return whether autograd raised an error because a result does not depend on what it is differentiated by."""
    texts = ("not have been used in the graph", "does not require grad", "doesn't require grad")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def copied(network: nn.Module) -> nn.Module:
    """Return a deep copy, with a snapshot of the hooks, since another thread's pass may add its own meanwhile.

    Tensors that the network keeps from an earlier pass are copied without their gradient history. Locks are shared.
    """
    memo: dict[int, object] = {}
    for m in network.modules():
        memo |= {id(t): OrderedDict(dict.copy(t)) for t in (m._forward_hooks, m._forward_pre_hooks)}
        for value in vars(m).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
            elif isinstance(value, _LOCKS):
                memo[id(value)] = value
    with torch.inference_mode(False), torch.no_grad(), as_unsupported(f"{type(network).__name__} cannot be copied"):
        copy_ = copy.deepcopy(network, memo)
    if network in NEED_GRADIENTS:
        NEED_GRADIENTS.add(copy_)
    return copy_


def all_modules(module: nn.Module) -> list[nn.Module]:
    """Return the module and all below it, a shared one several times.

    It takes a tenth of the time of ``modules()``, which is noticeable on small networks.
    """
    found = [module]
    for member in found:  # grows while it is walked
        if member._modules:
            found += [child for child in member._modules.values() if child is not None]
    return found


@dataclass(frozen=True)
class LayerOutput:
    """The output of one module at one call in a forward pass.

    Attributes:
        name: the module's qualified name (empty for the whole network).
        kind: its class name.
        shape: shape of its output.
        order: position in the order in which modules finished.
        identity: equal for modules that returned the very same tensor.
        layout: where the positions of the image are in the output, or None.
        pooling: whether the module pools.
        call: how many times the module ran before in the pass.
        calls: how many times the module ran in the pass.
        from_image: whether the output depends on the image; always True of a module that ran once.
        packed: whether it is the first of a tuple of outputs. Such a layer can be read by name and is never chosen.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    order: int
    identity: int
    layout: Layout | None = None
    pooling: bool = False
    call: int = 0
    calls: int = 1
    from_image: bool = True
    packed: bool = False

    @property
    def spatial(self) -> bool:
        """Whether the output is (N, C, h, w) or (N, h, w, C), or of a volume likewise, with several positions."""
        found = self.layout
        return found is not None and found.kind != "tokens" and found.positions > 1

    @property
    def sequence(self) -> bool:
        """Whether the output is a sequence of vectors, as in a transformer."""
        return is_sequence(self.shape) and not self.pooling

    @property
    def transparent(self) -> bool:
        """Whether the module passes its input on unchanged in evaluation mode."""
        return self.kind in ("Identity", "Dropout", "Dropout2d", "Dropout3d", "DropPath", "StochasticDepth")


def is_sequence(shape: Sequence[int]) -> bool:
    """Return whether an output for one image is a sequence of vectors: (1, T, C) or (T, 1, C)."""
    return len(shape) == 3 and shape[2] > 1 and min(shape[:2]) == 1 < max(shape[:2])


def main_tensor(output: object) -> Tensor | None:
    """Return a module's output if it is a tensor, or the first of a plain tuple of outputs, as blocks may give."""
    if type(output) is tuple and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def with_main_tensor(output: object, tensor: Tensor) -> object:
    """Return a module's output with another main tensor."""
    return (tensor, *output[1:]) if type(output) is tuple else tensor


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that does nothing in other threads, which may run the same network meanwhile."""
    owner = threading.get_ident()
    return lambda *arguments: hook(*arguments) if threading.get_ident() == owner else None


def trace_outputs(module: nn.Module, sample: Tensor) -> list[LayerOutput]:
    """Run a network once and return every tensor that its modules output, in order of finishing.

    A network with sequences of vectors, with maps as wide as they have channels, or with modules that run several
    times, runs twice more, each time with noise in another part of the image, to find which vectors are patches, which
    axes are rows and columns, and which calls depend on the image. Where this does not tell which vectors are patches,
    it is done again on an image of noise: of a blank one, normalization enlarges even the smallest change that
    attention spreads.

    Args:
        module: the network; it is not changed.
        sample: (1, C, H, W), or (1, C, D, H, W).
    """
    size, extra = tuple(sample.shape[2:]), prefix_tokens(module)
    first = _module_outputs(module, sample)
    total, ran = Counter(o.name for o in first), Counter[str]()

    @cache
    def changes(on_noise: bool) -> list[tuple[Part, list[_Change]]]:
        """Return for parts of the image how every output changes with them."""
        image = _with_noise(sample, 1, (slice(None),) * len(size)) if on_noise else sample
        before = _module_outputs(module, image) if on_noise else first
        found = []
        for region in _regions(size, 8 if on_noise else 2):
            after = _module_outputs(module, _with_noise(image, 0, region))
            if [a.tensor.shape for a in after] == [b.tensor.shape for b in before]:
                pairs = zip(after, before, strict=True)
                found.append((region, [_change(a.tensor, b.tensor, size) for a, b in pairs]))
        return found

    def values(order: int, on_noise: bool = False) -> list[tuple[Part, Tensor]]:
        return [(region, change[order].values) for region, change in changes(on_noise)]

    grids: list[tuple[int, ...]] = []
    known: dict[int, Layout] = {}
    found: list[LayerOutput] = []
    for order, (name, kind, output, packed) in enumerate(first):
        shape = tuple(output.shape)
        pooling = bool(_POOLING.search(kind)) and next(module.get_submodule(name).parameters(), None) is None
        own = values(order) if is_sequence(shape) or is_ambiguous(shape, size) else []
        layout = grid_layout(shape, size, own) if shape[:1] == (len(sample),) else None
        if layout is not None and not (pooling or packed) and layout.positions > 1:
            grids.append(layout.grid)
        if is_sequence(shape) and not pooling:
            axis = 0 if shape[0] == 1 else 1
            length = shape[1 - axis]
            if own and not any(bool(change.any()) for _, change in own):
                if len(output.flatten(0, 1).unique(dim=0)) > 1:
                    known.pop(length, None)  # such as learned queries; tokens computed with them are checked again
            elif length not in known and not packed:  # parts of a block of attention tell more than its tuple
                others = {number - tokens.positions for number, tokens in known.items()}
                tried = (
                    token_layout(length, grids, size, extra, values(order, noise), others) for noise in (False, True)
                )
                tokens = next((layout for layout in tried if layout is not None), None)
                if tokens is not None:
                    known[length] = tokens
                    grids.append(tokens.grid)
            layout = replace(known[length], batch_axis=axis) if length in known else None
        from_image = total[name] == 1 or any(change[order].any for _, change in changes(False))
        found.append(
            LayerOutput(
                name, kind, shape, order, id(output), layout, pooling, ran[name], total[name], from_image, packed
            )
        )
        ran[name] += 1
    return found


class _Output(NamedTuple):
    """What a module outputs; see :class:`LayerOutput`."""

    name: str
    kind: str
    tensor: Tensor
    packed: bool


def _module_outputs(module: nn.Module, sample: Tensor) -> list[_Output]:
    """Run a network once and return the output of every module that outputs a tensor, in order."""
    outputs: list[_Output] = []

    def hook(name: str, kind: str) -> Callable[[nn.Module, object, object], None]:
        def record(_module: nn.Module, _inputs: object, output: object) -> None:
            tensor = main_tensor(output)
            if tensor is not None:
                outputs.append(_Output(name, kind, tensor, tensor is not output))

        return record

    noting = (m.register_forward_hook(in_this_thread(hook(n, type(m).__name__))) for n, m in layers(module))
    with hooks(noting), evaluating(module), without_gradients(module):
        module(on_device(sample, module))
    return outputs


def changed_by_noise(module: nn.Module, sample: Tensor, outputs: Iterable[LayerOutput]) -> list[LayerOutput]:
    """Return the outputs that are others for an image of noise: not those of position embeddings.

    Args:
        module: the network; it runs twice.
        sample: (1, C, H, W) image for which the outputs were traced.
        outputs: see :func:`trace_outputs`.
    """
    noise = _with_noise(sample, 0, (slice(None), slice(None)))
    before, after = ({o.name: o.tensor for o in _module_outputs(module, image)} for image in (sample, noise))
    return [o for o in outputs if o.name in after and not torch.equal(before[o.name], after[o.name])]


class _Change(NamedTuple):
    """How an output changed.

    Attributes:
        any: whether it did.
        values: of tokens, how much each did beyond what attention spreads to all, (T,); of maps that can be read in two
            ways, the difference; else nothing.
    """

    any: bool
    values: Tensor


def _change(after: Tensor, before: Tensor, size: tuple[int, ...]) -> _Change:
    if is_sequence(after.shape):
        differences = (after - before).detach().float().flatten(0, 1).cpu()
        middle = (len(differences) - 1) // 2
        # torch.median takes three times as long
        median = torch.from_numpy(np.partition(differences.numpy(), middle, axis=0)[middle])
        return _Change(bool(differences.any()), (differences - median).norm(dim=1))
    values = after - before if is_ambiguous(after.shape, size) else torch.zeros(0)
    return _Change(not torch.equal(after, before), values)


def _regions(size: tuple[int, ...], number: int) -> list[Part]:
    """Return up to eight parts of an image or volume of that size, a quarter of each side, in different places."""
    sides = [max(side // 4, 1) for side in size]
    lasts = [side - part for side, part in zip(size, sides, strict=True)]
    parts = []
    for place in _PLACES[:number]:
        starts = [min(p * s, last) for p, s, last in zip(place[-len(size) :], sides, lasts, strict=True)]
        parts.append(tuple(slice(start, start + s) for start, s in zip(starts, sides, strict=True)))
    return parts


def _with_noise(sample: Tensor, seed: int, region: Part) -> Tensor:
    """Return a copy of an input (1, C, H, W) or (1, C, D, H, W) with seeded noise in one part."""
    copy = sample.clone()
    place = (slice(None), slice(None), *region)
    part = copy[place]
    part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(seed)))
    return copy


def misplaced(module: nn.Module, sample: Tensor, layers: Mapping[str, tuple[Layout, int]]) -> dict[str, str]:
    """Return how the positions of layers lie in the image, if not as their maps are drawn; else empty texts.

    The network runs on noise, and again with other noise in eight parts of it.

    Args:
        module: the network; it is not changed.
        sample: (1, C, H, W).
        layers: by name the layout of each layer's output, a grid, and which of its calls in a pass.
    """
    kept: dict[str, list[Tensor]] = {}

    def keep(name: str) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            tensor = main_tensor(output)
            if tensor is not None:
                kept.setdefault(name, []).append(tensor.detach())

        return module.get_submodule(name).register_forward_hook(in_this_thread(hook))

    def maps(image: Tensor) -> dict[str, Tensor]:
        kept.clear()
        with hooks(keep(name) for name in layers):
            module(on_device(image, module))
        found = {name: layout.to_maps(kept[name][call])[0] for name, (layout, call) in layers.items()}
        return {name: (values.abs() if values.is_complex() else values).float() for name, values in found.items()}

    height, width = sample.shape[2:]
    noise = _with_noise(sample, 1, (slice(None), slice(None)))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in layers}
    parts: dict[str, list[tuple[float, float]]] = {name: [] for name in layers}
    unseen: dict[str, list[Tensor]] = {name: [] for name in layers}
    with evaluating(module), without_gradients(module):
        before = maps(noise)
        for rows, columns in _regions((height, width), 8):
            image = _with_noise(noise, 0, (rows, columns))
            for name, after in maps(image).items():
                change = after - before[name]
                change = change - change.flatten(1).median(dim=1).values[:, None, None]  # what spreads everywhere
                center = _center(change.norm(dim=0).square())
                if center is None:
                    unseen[name].append(image)
                    continue
                found[name].append(center)
                place = (rows.start + rows.stop) / (2 * height), (columns.start + columns.stop) / (2 * width)
                parts[name].append(place)
    problems = {name: misplacement(found[name], parts[name]) for name in layers}
    for name, images in unseen.items():
        if found[name] and len(images) > 1 and all(_same(module, noise, image) for image in images):
            problems[name] = "sees only a part of the image"
    return problems


def _same(module: nn.Module, one: Tensor, other: Tensor) -> bool:
    """Return whether no module of a network outputs anything else for one image than for the other."""
    pairs = zip(_module_outputs(module, one), _module_outputs(module, other), strict=False)
    return all(torch.equal(a.tensor, b.tensor) for a, b in pairs)


def _center(weights: Tensor) -> tuple[float, float] | None:
    """Return the center (y, x) of weights (h, w), in [0, 1]; None if they are 0."""
    total = float(weights.sum())
    if not 0 < total < float("inf"):
        return None
    ends = (
        float((weights.sum(dim=1 - axis) * (torch.arange(side, device=weights.device) + 0.5)).sum()) / side / total
        for axis, side in enumerate(weights.shape)
    )
    y, x = ends
    return y, x


def prefix_tokens(module: nn.Module) -> int | None:
    """Return how many tokens beside the patches there are, or None if the network does not state it.

    timm's transformers state it. Networks that state how many registers or detection tokens they have, such as DINOv2
    and YOLOS, also have a class token. Detection tokens come behind the patches.
    """
    number = getattr(module, "num_prefix_tokens", None)
    if isinstance(number, int):
        return number
    inside = {n for m in module.modules() if isinstance(n := getattr(m, "num_prefix_tokens", None), int)}
    inside = inside or {n + 1 for m in module.modules() for n in _stated_tokens(m)}
    return inside.pop() if len(inside) == 1 else None


def _stated_tokens(module: nn.Module) -> list[int]:
    """Return how many registers or detection tokens a module has, where it says so."""
    stated = [getattr(module, "num_register_tokens", None)]
    stated.append(getattr(getattr(module, "config", None), "num_detection_tokens", None))
    return [number for number in stated if isinstance(number, int)]


def on_device(inputs: Tensor, module: nn.Module) -> Tensor:
    """Return a copy of inputs on the device and in the precision of a network's weights.

    The precision is that of the first matrix of weights: scales and tables may have another. It is a copy because a
    network may change its input in place.
    """
    weight = None
    for parameter in module.parameters():  # up to the first matrix: walking over all takes as long as a layer
        if parameter.is_floating_point() and (weight is None or parameter.dim() > 1):
            weight = parameter
            if weight.dim() > 1:
                break
    return inputs.clone() if weight is None else inputs.to(weight.device, weight.dtype, copy=True)


def spatial_layers(outputs: list[LayerOutput]) -> list[LayerOutput]:
    """Return the named layers with a spatial output of their own, leaving out pooling and pass-through modules.

    For a module that ran several times, this is only the call that depends on the image, if there is just one.
    """
    pooled = {o.identity for o in outputs if o.pooling}
    named = [
        o for o in outputs if o.name and o.spatial and o.identity not in pooled and not (o.transparent or o.packed)
    ]
    return of_the_image(named)


def of_the_image(outputs: list[LayerOutput]) -> list[LayerOutput]:
    """Return the outputs of modules that ran once, or of which one call depends on the image."""
    calls = Counter(o.name for o in outputs if o.from_image)
    return [o for o in outputs if o.calls == 1 or (o.from_image and calls[o.name] == 1)]


def classifier_name(module: nn.Module) -> str:
    """Return the name of the last linear layer, or without any of the last 1x1 convolution, which gives the logits.

    Raises:
        UnsupportedModelError: the model has neither.
    """
    linear: list[str] = []
    pointwise: list[str] = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            linear.append(name)
        elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            pointwise.append(name)
    if not linear and not pointwise:
        raise UnsupportedModelError(
            f"{type(module).__name__} has no linear layer or 1x1 convolution that could give its logits"
        )
    return (linear or pointwise)[-1]


def find_classifier(module: nn.Module) -> nn.Linear:
    """Return the layer that gives the logits, a 1x1 convolution as a linear layer of the same weights.

    Raises:
        UnsupportedModelError: the model has none; see :func:`classifier_name`.
    """
    found = module.get_submodule(classifier_name(module))
    if isinstance(found, nn.Linear):
        return found
    assert isinstance(found, nn.Conv2d)
    linear = nn.Linear(found.in_channels, found.out_channels, device="meta")
    linear.weight, linear.bias = nn.Parameter(found.weight.detach().flatten(1)), found.bias  # type: ignore[assignment]
    return linear
