"""Maps drawn while Lightning trains: where they go, what they show, and that the training does not notice."""

from __future__ import annotations

import importlib
import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from support import GapNet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import xai_abn
from xai_abn.errors import InvalidInputError, UnknownNameError, XaiAbnWarning
from xai_abn.images.preprocess import Preprocess
from xai_abn.integrations.lightning import MapsCallback

pytestmark = pytest.mark.filterwarnings("ignore:::(lightning|pytorch_lightning|torch)")
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


class Augmented(torch.utils.data.Dataset):
    """Twelve images, changed by every source of randomness that people augment with."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return image * random.random() + np.random.rand() + torch.rand(1), index % 5


def module_of(lightning, noise):
    """A LightningModule of a package, with dropout and BatchNorm, and noise that it also draws in evaluation mode."""

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(GapNet(), nn.Dropout(0.3), nn.Linear(5, 5))

        def forward(self, x):
            return self.model(x + noise * torch.randn_like(x) if noise else x)

        def training_step(self, batch, index):
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    return Classifier()


def train(tmp_path, callbacks, logger=None, package="lightning.pytorch", epochs=2, noise=0.0):
    """Train for two epochs of three steps and return the module."""
    lightning = importlib.import_module(package)
    lightning.seed_everything(3, verbose=False)
    random.seed(3)
    module = module_of(lightning, noise)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        logger=logger if logger is not None else False,
        callbacks=callbacks,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(Augmented(), batch_size=4, shuffle=True))
    return module


def tensorboard(tmp_path, package="lightning.pytorch"):
    return importlib.import_module(f"{package}.loggers").TensorBoardLogger(tmp_path)


def drawn(folder):
    """Images by tag in the event files of a folder, with their steps."""
    (folder,) = {path.parent for path in folder.rglob("events.*")}
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in events.Tags()["images"]}


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_each_epoch_draws_a_sheet_of_each_method(package, tmp_path):
    """In the trainer's own TensorBoard, before the first step and after each epoch; the maps are those of explain."""
    methods = ["grad-cam", "saliency", "rise:masks=8"]
    callback = MapsCallback(IMAGES, methods, [0, 1, 2])
    module = train(tmp_path, [callback], tensorboard(tmp_path, package), package)
    found = drawn(tmp_path)
    assert found.keys() == {f"maps/{method}" for method in methods}
    for sheets in found.values():
        assert [step for step, _ in sheets] == [0, 3, 6]
        assert sheets[0][1] != sheets[1][1] != sheets[2][1]
    records = xai_abn.explain(module, IMAGES, "grad-cam", [0, 1, 2])
    last = _decoded(found["maps/grad-cam"][-1][1])
    page = xai_abn.rendering.sheet(
        [xai_abn.rendering.Panel(r.view, r.source, r.panel.subtitle, r.map) for (r,) in (e.values() for e in records)]
    )
    np.testing.assert_array_equal(last, np.asarray(page))


def _decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def test_training_is_the_same_bit_for_bit(tmp_path):
    """With dropout, BatchNorm, and augmentation by torch, numpy and Python; with methods that draw random numbers."""
    plain = train(tmp_path / "a", [], tensorboard(tmp_path / "a"), noise=0.01)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    callback = MapsCallback(IMAGES, ["grad-cam", "rise:masks=8", "smooth-grad", "lime:samples=20", "score-cam"])
    watched = train(tmp_path / "b", [callback], tensorboard(tmp_path / "b"), noise=0.01)
    assert len(drawn(tmp_path / "b")["maps/score-cam"]) == 3
    for (name, one), other in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    assert [m.training for m in watched.modules()] == [m.training for m in plain.modules()]


def test_only_the_first_process_draws(tmp_path, monkeypatch):
    """Where the trainer is not global zero, the callback does nothing."""
    from lightning.pytorch import Trainer

    monkeypatch.setattr(Trainer, "is_global_zero", False)
    train(tmp_path, [MapsCallback(IMAGES)], tensorboard(tmp_path))
    monkeypatch.undo()
    assert all(not drawn(folder) for folder in {p.parent for p in tmp_path.rglob("events.*")})


def test_the_network_to_explain_can_be_named(tmp_path):
    """With labels, a layer and files as images."""
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    seen = []

    def network(module):
        options = {"labels": list("abcde"), "preprocess": Preprocess(size=32), "layer": "0.features.1"}
        seen.append(xai_abn.wrap(module.model, **options))
        return seen[-1]

    train(tmp_path, [MapsCallback([path], "grad-cam", "b", network=network)], tensorboard(tmp_path))
    assert len(seen) == 1
    assert len(drawn(tmp_path)["maps/grad-cam"]) == 3


def test_mistakes_show_before_the_first_step(tmp_path):
    """An unknown method or class, another number of targets, no image, a file that is none."""
    with pytest.raises(UnknownNameError, match="did you mean 'grad-cam'"):
        train(tmp_path, [MapsCallback(IMAGES, "gradcam")], tensorboard(tmp_path))
    with pytest.raises(InvalidInputError, match="target 7 is out of range"):
        train(tmp_path, [MapsCallback(IMAGES, "grad-cam", 7)], tensorboard(tmp_path))
    with pytest.raises(xai_abn.errors.ImageLoadError, match=r"nothing\.png"):
        train(tmp_path, [MapsCallback(tmp_path / "nothing.png")], tensorboard(tmp_path))
    with pytest.raises(InvalidInputError, match="got 2 targets for 3 images"):
        MapsCallback(IMAGES, "grad-cam", [0, 1])
    with pytest.raises(InvalidInputError, match="at least one image"):
        MapsCallback([])


def test_loggers_that_take_no_images_are_named_once(tmp_path):
    """A CSV logger, and none at all; the others get their images."""
    from lightning.pytorch.loggers import CSVLogger

    with pytest.warns(XaiAbnWarning, match="no maps are sent to CSVLogger; use TensorBoard") as caught:
        train(tmp_path, [MapsCallback(IMAGES)], [CSVLogger(tmp_path / "csv"), tensorboard(tmp_path)])
    assert sum("no maps are sent" in str(w.message) for w in caught) == 1
    assert len(drawn(tmp_path)["maps/grad-cam"]) == 3
    with pytest.warns(XaiAbnWarning, match="the trainer has no logger"):
        train(tmp_path, [MapsCallback(IMAGES)])


def test_images_go_to_wandb_and_mlflow(tmp_path):
    """By the documented calls of Lightning's loggers of these names; the libraries take half a minute to start."""
    from lightning.pytorch.loggers import Logger

    calls = []

    class Recorder(Logger):
        name = version = "recorded"
        run_id = "abc"

        @property
        def experiment(self):
            return self

        def log_metrics(self, metrics, step=None): ...

        def log_hyperparams(self, params): ...

    class WandbLogger(Recorder):
        def log_image(self, key, images, step=None):
            calls.append((key, [image.size for image in images], step))

    class MLFlowLogger(Recorder):
        def log_image(self, run_id, image, artifact_file):
            calls.append((run_id, image.size, artifact_file))

    train(tmp_path, [MapsCallback(IMAGES, "grad-cam++")], [WandbLogger(), MLFlowLogger()], epochs=1)
    (_, (size,), _), *_ = calls
    assert calls == [
        ("maps/grad-cam++", [size], 0),
        ("abc", size, "maps/grad-cam++/00000000.png"),
        ("maps/grad-cam++", [size], 3),
        ("abc", size, "maps/grad-cam++/00000003.png"),
    ]


def test_a_network_that_diverges_goes_on_with_a_warning(tmp_path):
    """Its scores are NaN after the first epoch; the training is not stopped by the maps."""
    import lightning.pytorch as lightning

    class Diverge(lightning.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            module.model[2].weight.data.fill_(float("nan"))

    with pytest.warns(XaiAbnWarning, match=r"a map is not drawn at step 3: image 0: .* outputs NaN.* \(and 2 more\)"):
        train(tmp_path, [Diverge(), MapsCallback(IMAGES)], tensorboard(tmp_path), epochs=1)
    assert len(drawn(tmp_path)["maps/grad-cam"]) == 1


def test_weights_split_over_devices_are_refused(tmp_path):
    """DeepSpeed's ZeRO-3 marks its parts so; to run the network on one process alone would wait for the others."""
    from xai_abn.integrations.training_maps import TrainingMaps

    network = GapNet()
    network.fc.weight.ds_id = 1
    with pytest.raises(xai_abn.errors.UnsupportedModelError, match="split over several devices"):
        TrainingMaps(IMAGES, "grad-cam", None).start(network, [print], 0)


def test_without_lightning_the_error_says_what_to_install():
    """Neither of the two packages."""
    from xai_abn.integrations.training_maps import base_class

    with pytest.raises(InvalidInputError, match=r"needs no_such_package: pip install 'xai-abn\[lightning\]'"):
        base_class(["no_such_package", "nor_this.one"], "Callback", "lightning")
