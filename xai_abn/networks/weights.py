"""Weights files from other programs: state dicts, alone or inside a training checkpoint, under any prefix.

A file is never executed. Tensors are found by the parameter names of the network.
"""

from __future__ import annotations

import argparse
import pathlib
import pickletools
import re
import types
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xai_abn.errors import CheckpointError, XaiAbnWarning

#: Parts that torch adds to the names of a module that is compiled, sharded (FSDP) or recomputed.
_INSERTED = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
#: Words in the key or prefix of weights that were averaged while training (exponential moving average).
_EMA = re.compile(r"(?<![a-z])ema(?![a-z])")
#: Depth to which a training checkpoint is searched for weights.
_DEPTH = 4


class WeightsWarning(XaiAbnWarning):
    """Given when a weights file holds more than the weights that are used."""


class WithoutRandomWeights(TorchFunctionMode):
    """A context in which networks are built without drawing weights, which are then loaded from a file.

    Weights that would be drawn are set to their mean, which saves time, and torch's random state does not change.
    They have to be set, because ``trunc_normal_`` of torch draws again until all values are within its bounds.
    """

    _DRAWS = frozenset(("uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_"))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return the tensor filled from a function that draws; call any other."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in (torch.rand, torch.randn):
            return torch.zeros(*args, **{key: value for key, value in kwargs.items() if key != "generator"})
        if name not in self._DRAWS:
            return func(*args, **kwargs)
        tensor: Tensor = args[0] if args else kwargs["tensor"]
        tensor.detach().fill_(kwargs.get("mean", args[1] if len(args) > 1 else 0) if name == "normal_" else 0)
        return tensor


@dataclass(frozen=True)
class _StateDict:
    """Tensors of a file under one key and one prefix.

    Attributes:
        place: key and prefix, in words.
        tensors: by their names without the prefix.
        missing: how many names of the network are not among them.
        others: names of the tensors under the same key without the prefix.
    """

    place: str
    tensors: dict[str, Tensor]
    missing: int
    others: list[str]


def read_weights(path: str | Path, names: Collection[str] = ()) -> dict[str, Tensor]:
    """Read a network's weights from ``.safetensors`` or a torch file, without running code in it.

    The state dict may be the file itself or lie in a training checkpoint under any key, and its names may have any
    prefix, such as ``module.`` or ``model.``; ``_orig_mod.`` and the like are removed. Averaged weights (EMA) are
    preferred, as timm does; a warning says so.

    Args:
        path: the file.
        names: of the network's own state dict; without them, the file must hold one state dict without a prefix.

    Raises:
        CheckpointError: missing, damaged, a file of objects other than tensors, or several networks that fit.
    """
    content = _load(Path(path))
    found, lists = list(_tensors_by_name(content, ())), list(_averages_without_names(content, ()))
    if not found:
        keys = f"; its keys are {', '.join(map(str, list(content)[:8]))}" if isinstance(content, Mapping) else ""
        keys += f"; {_naming(path, lists[0], 'network.state_dict()')}" if lists else ""
        raise CheckpointError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}{keys}")
    needed = {name for name in names if not name.endswith("num_batches_tracked")}
    fitting = [s for key, tensors in found for s in _under_prefixes(key, tensors, needed)]
    if not fitting:
        return max((tensors for _, tensors in found), key=len)
    whole = [s for s in fitting if not s.missing] or [min(fitting, key=lambda s: s.missing)]
    chosen = _chosen(path, whole)
    averaged = [s for s in fitting if _EMA.search(s.place) and 0 < s.missing < len(needed) / 2 and s is not chosen]
    if averaged:
        _warn(path, f"{chosen.place} is used; {averaged[0].place} lacks {averaged[0].missing} of the weights")
    if lists:
        _warn(path, f"{chosen.place} is used; {_naming(path, lists[0], 'WEIGHTS_USED')}")
    if chosen.others and len(whole) == 1:
        unused = f"{len(chosen.others)} tensors beside it, such as {chosen.others[0]}, are not used"
        _warn(path, f"{chosen.place} is used; {unused}")
    return {name: value.clone() for name, value in chosen.tensors.items()}  # tensors of a file may share memory


def _warn(path: str | Path, text: str) -> None:
    warnings.warn(WeightsWarning(f"{path}: {text}"), stacklevel=3)


def _tensors_by_name(content: Any, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield each dictionary with tensors by name in a file's content, and the keys that lead to it."""
    if not isinstance(content, Mapping) or len(key) > _DEPTH:
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {_INSERTED.sub("", name): value for name, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield key, tensors
    for name, value in named.items():
        yield from _tensors_by_name(value, (*key, name))


def _averages_without_names(content: Any, key: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the keys that lead to averaged weights in a list, as torch_ema and diffusers write them."""
    if isinstance(content, Mapping) and len(key) <= _DEPTH:
        for name, value in content.items():
            yield from _averages_without_names(value, (*key, str(name)))
    averaged = key and (_EMA.search(".".join(key)) or "shadow" in key[-1])
    if averaged and isinstance(content, list | tuple) and any(isinstance(value, Tensor) for value in content):
        yield key


def _naming(path: str | Path, key: tuple[str, ...], weights: str) -> str:
    """Return what averaged weights without names are, and the line that names them."""
    place = "".join(f"[{part!r}]" for part in key)
    return (
        f"{'.'.join(key)} holds averaged weights without names, which are not read; name them: torch.save({{**{weights}"
        f", **dict(zip(dict(network.named_parameters()), torch.load({str(path)!r}){place}))}}, 'weights.pth')"
    )


def _under_prefixes(key: tuple[str, ...], tensors: Mapping[str, Tensor], needed: set[str]) -> Iterator[_StateDict]:
    """Yield the tensors under each prefix that names of the network follow."""
    hits: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in needed:
                hits["".join(f"{part}." for part in parts[:start])] += 1
    for prefix, count in hits.items():
        words = [".".join(key)] if key else []
        words += [f"prefix {prefix}"] if prefix else []
        yield _StateDict(
            " with ".join(words) or "the state dict without prefix",
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)},
            len(needed) - count,
            [name for name in tensors if not name.startswith(prefix)],
        )


def _chosen(path: str | Path, fitting: list[_StateDict]) -> _StateDict:
    """Return the averaged one of several state dicts, or any of them if all are equal.

    Raises:
        CheckpointError: they differ, and not exactly one of them is averaged.
    """
    averaged = [s for s in fitting if _EMA.search(s.place)]
    first = (averaged or fitting)[0]
    if len(averaged or fitting) > 1 and not all(_equal(first.tensors, s.tensors) for s in fitting):
        places = ", ".join(s.place for s in fitting)
        raise CheckpointError(
            f"{path}: holds several networks that fit ({places}); save the one that you mean by itself, such as "
            f"torch.save(torch.load({str(path)!r})[KEY], 'weights.pth')"
        )
    if len(fitting) > len(averaged) > 0:
        others = ", ".join(s.place for s in fitting if s is not first)
        _warn(path, f"the averaged weights {first.place} are used, not {others}")
    return first


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _load(path: Path) -> Any:
    """Return a file's content: tensors, plain containers, numbers and texts, and the objects of :func:`_harmless`."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors" or is_safetensors(path):
            return load_file(path)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch can raise anything for a damaged file, and its message advises to execute it
        raise CheckpointError(f"{path}: not a plain weights file ({_what_it_is(path)})") from error


def is_safetensors(path: str | Path) -> bool:
    """Return whether a file begins as a safetensors file does, whatever its name."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _harmless() -> list[Any]:
    """Return the classes and functions that training checkpoints often hold and that do nothing but hold values."""
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    numpy = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    numpy += [(array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefdU"}
    paths = [
        (kind, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name, kind in (("PosixPath", pathlib.PurePosixPath), ("WindowsPath", pathlib.PureWindowsPath))
    ]
    plain: list[Any] = [argparse.Namespace, types.SimpleNamespace, dict, list, int, float, np.ndarray, np.dtype]
    default: Any = (lambda *_: {}, "collections.defaultdict")  # torch fills no other dictionaries than plain ones
    return [*plain, default, *numpy, *dtypes, *paths]


def _what_it_is(path: Path) -> str:
    """Return what an unreadable file is, and what to do."""
    start = path.read_bytes()[:64] if path.stat().st_size < 1024 else b""
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS; fetch the file itself with: git lfs pull"
    if not zipfile.is_zipfile(path):
        return "damaged, or a pickle of more than tensors, which is never executed"
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(("/data.pkl", "/constants.pkl"))]
        if len(members) > 1:
            return (
                f"a TorchScript program; save its weights: torch.save(torch.jit.load({str(path)!r}).state_dict(), ...)"
            )
        try:
            with archive.open(members[0]) as file:
                steps = list(pickletools.genops(file))
            with torch.serialization.safe_globals(_harmless()):
                objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except Exception:  # a damaged file can raise anything
            return "damaged"
    root = next((argument for step, argument, _ in steps if step.name != "PROTO"), None)
    if not objects:
        return "damaged"
    held, weights = ", ".join(sorted(objects)[:3]), "x['state_dict']"
    if str(root).replace(" ", ".") in objects:
        held, weights = f"{str(root).replace(' ', '.')}, a whole object", "x.state_dict()"
    return (
        f"it holds {held}, which only running the file's code would restore, and it is never executed; if you trust "
        f"it: x = torch.load({str(path)!r}, weights_only=False); torch.save({weights}, 'weights.pth')"
    )


class _LargeOnMeta(TorchFunctionMode):
    """A context in which large tensors are made on the meta device, where they take no memory.

    Small ones are real, because networks compute with some while they are built, such as dropout rates.
    """

    _MAKES = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn))
    _LARGE = 2**20

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return a large tensor without memory from a function that makes tensors; call any other."""
        kwargs = kwargs or {}
        if func in self._MAKES and kwargs.get("device") is None:
            made = func(*args, **{**kwargs, "device": "meta"})
            if made.numel() >= self._LARGE:
                return made
        return func(*args, **kwargs)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network whose large tensors are on the meta device; its weights are not drawn."""
    with WithoutRandomWeights(), _LargeOnMeta():
        return build()


def load_network(build: Callable[[], nn.Module], state: Mapping[str, Tensor], source: str) -> nn.Module:
    """Build a network and load its weights, once their names and shapes are known to fit.

    Raises:
        CheckpointError: see :func:`load_weights`; nothing was built that takes memory.
    """
    network = on_meta(build)
    own = network.state_dict()
    _refuse_others(type(network).__name__, own, state, source)
    network.load_state_dict({name: value.to(own[name].dtype) for name, value in state.items()}, assign=True)
    held = (t for m in network.modules() for t in (*m.parameters(False), *m.buffers(False), *vars(m).values()))
    if any(isinstance(t, Tensor) and t.is_meta for t in held):  # tensors that are computed, and not in the file
        with WithoutRandomWeights():
            network = build()
        load_weights(network, state, source)
    return network


def classes_of(weights: Mapping[str, Tensor], build: Callable[[int], nn.Module]) -> int | None:
    """Return the number of classes of the last layer in a network's weights; None if they lack that layer.

    The last layer's tensors are those whose shapes change with the number of classes that the network is built for.

    Args:
        weights: see :func:`read_weights`.
        build: makes the network for a number of classes.
    """
    two, three = (shapes(on_meta(partial(build, number)).state_dict()) for number in (2, 3))
    places = [(name, pair) for name in two for pair in enumerate(zip(two[name], three[name], strict=True))]
    last = [(name, axis) for name, (axis, sizes) in places if sizes == (2, 3)]
    if not all(name in weights and weights[name].dim() == len(two[name]) for name, _ in last):
        return None
    found = {weights[name].shape[axis] for name, axis in last}
    return int(found.pop()) if len(found) == 1 else None


def misfit(own: Mapping[str, torch.Size], given: Mapping[str, torch.Size]) -> str | None:
    """Return how the names or shapes of weights differ from a network's own, or None.

    Counters of BatchNorms may be missing, as in files of old versions of torch.
    """
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    unknown = [name for name in given if name not in own]
    other = [name for name in given if name in own and own[name] != given[name]]
    found = []
    if missing:
        found.append(f"{len(missing)} are missing, such as {', '.join(missing[:2])}")
    if unknown:
        found.append(f"{len(unknown)} are not the network's, such as {', '.join(unknown[:2])}")
    if other:
        name = other[0]
        found.append(f"{len(other)} have another shape, such as {name}: {tuple(given[name])}, not {tuple(own[name])}")
    return "; ".join(found) or None


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights strictly.

    Raises:
        CheckpointError: names, shapes or types do not fit; the message gives the first ones.
    """
    _refuse_others(type(module).__name__, module.state_dict(), state, source)
    module.load_state_dict(dict(state))


def _refuse_others(kind: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    problem = misfit(shapes(own), shapes(state))
    odd = [n for n, t in state.items() if n in own and own[n].is_floating_point() and not t.is_floating_point()]
    if problem is None and odd:
        problem = f"{odd[0]} holds {state[odd[0]].dtype}, not floating-point numbers"
    if problem is not None:
        raise CheckpointError(f"{source}: the weights do not fit {kind}: {problem}")


def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shape of each tensor."""
    return {name: value.shape for name, value in state.items()}
