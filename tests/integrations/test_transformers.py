"""Maps drawn while the Trainer of Hugging Face trains: where they go, and that the training does not notice."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xai_abn.errors import UnknownNameError, XaiAbnWarning
from xai_abn.integrations.transformers import MapsCallback

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


class Augmented(torch.utils.data.Dataset):
    """Twelve images, changed by every source of randomness that people augment with."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        image = image * random.random() + np.random.rand() + torch.rand(1)
        return {"pixel_values": image.float(), "labels": index % 3}


def trainer_of(folder, report_to="none", callbacks=(), **options):
    """A Trainer of a tiny ViT with dropout, for two epochs of three steps."""
    transformers.set_seed(3)
    config = transformers.ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.2,
        id2label={0: "cat", 1: "dog", 2: "kite"},
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        report_to=report_to,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        seed=3,
    )
    network = transformers.ViTForImageClassification(config)
    return transformers.Trainer(network, arguments, train_dataset=Augmented(), callbacks=list(callbacks), **options)


def drawn(folder):
    """Images by tag in the event files of a folder, with their steps."""
    (found,) = {path.parent for path in folder.rglob("events.*")}
    events = EventAccumulator(str(found), size_guidance={"images": 0}).Reload()
    return {tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in events.Tags()["images"]}


def test_each_epoch_draws_a_sheet_of_each_method(tmp_path):
    """In the same TensorBoard folder as the losses, before the first step and after each epoch."""
    trainer = trainer_of(tmp_path, "tensorboard")
    trainer.add_callback(MapsCallback(trainer, IMAGES, ["grad-cam", "attention-rollout"], ["cat", "dog", "kite"]))
    trainer.train()
    found = drawn(tmp_path)
    assert found.keys() == {"maps/grad-cam", "maps/attention-rollout"}
    for sheets in found.values():
        assert [step for step, _ in sheets] == [0, 3, 6]
        assert sheets[0][1] != sheets[1][1] != sheets[2][1]


def test_training_is_the_same_bit_for_bit(tmp_path):
    """With dropout, and augmentation by torch, numpy and Python; with methods that draw random numbers."""
    plain = trainer_of(tmp_path / "a", "tensorboard")
    plain.train()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    watched = trainer_of(tmp_path / "b", "tensorboard")
    watched.add_callback(MapsCallback(watched, IMAGES, ["grad-cam", "rise:masks=8", "smooth-grad"]))
    watched.train()
    assert len(drawn(tmp_path / "b")["maps/smooth-grad"]) == 3
    for (name, one), other in zip(plain.model.state_dict().items(), watched.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


def test_the_image_processor_prepares_files(tmp_path):
    """The trainer's own, so that the network sees what it is trained on."""
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(path)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.2] * 3)
    trainer = trainer_of(tmp_path, "tensorboard", processing_class=processor)
    callback = MapsCallback(trainer, [path])
    trainer.add_callback(callback)
    trainer.train()
    assert callback._maps._model.preprocess.mean == (0.2, 0.2, 0.2)
    assert len(drawn(tmp_path)["maps/grad-cam"]) == 3


def test_only_the_first_process_draws(tmp_path):
    """Elsewhere the callback does nothing."""
    trainer = trainer_of(tmp_path, "tensorboard")
    callback = MapsCallback(trainer, IMAGES, "no-such-method")
    elsewhere = SimpleNamespace(is_world_process_zero=False, global_step=0)
    callback.on_train_begin(trainer.args, elsewhere, None, model=trainer.model)
    callback.on_epoch_end(trainer.args, elsewhere, None)
    with pytest.raises(UnknownNameError):
        callback.on_train_begin(
            trainer.args, SimpleNamespace(is_world_process_zero=True, global_step=0), None, trainer.model
        )


class Recorder:
    """The calls of wandb's run and mlflow's client, by their documented names, kept as they came."""

    def __init__(self):
        self.found = []

    def log(self, values):
        self.found.append(values)

    def log_image(self, run_id, image, artifact_file):
        self.found.append((run_id, artifact_file, image.size))


def quiet(kind):
    """The integration of a logger without what it does itself, which needs the library."""
    events = {name: lambda self, *_, **__: None for name in dir(transformers.TrainerCallback) if name.startswith("on_")}
    return type(kind.__name__, (kind,), {"__init__": lambda self: None, "__del__": lambda self: None, **events})()


def test_images_go_to_the_run_of_wandb(tmp_path, monkeypatch):
    """With the trainer's own steps, and without a step of wandb, which would put its losses out of order."""
    run = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run, Image=lambda image: image.size))
    trainer = trainer_of(tmp_path, callbacks=[quiet(transformers.integrations.WandbCallback)])
    trainer.add_callback(MapsCallback(trainer, IMAGES))
    trainer.train()
    assert [values["train/global_step"] for values in run.found] == [0, 3, 6]
    assert all(values.keys() == {"maps/grad-cam", "train/global_step"} for values in run.found)
    assert all(width > height > 256 for width, height in (values["maps/grad-cam"] for values in run.found))


def test_images_go_to_the_run_of_mlflow(tmp_path, monkeypatch):
    """As artifacts, a folder for each method, named by the step."""
    client = Recorder()
    run = SimpleNamespace(info=SimpleNamespace(run_id="abc"))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda: client, active_run=lambda: run))
    trainer = trainer_of(tmp_path, callbacks=[quiet(transformers.integrations.MLflowCallback)])
    trainer.add_callback(MapsCallback(trainer, IMAGES, "rise:masks=8,seed=1"))
    trainer.train()
    expected = [("abc", f"maps/rise-masks-8-seed-1/0000000{step}.png") for step in (0, 3, 6)]
    assert [row[:2] for row in client.found] == expected


def test_loggers_that_take_no_images_are_named_once(tmp_path):
    """Another integration, and none at all."""
    trainer = trainer_of(tmp_path, callbacks=[quiet(transformers.integrations.CometCallback)])
    trainer.add_callback(MapsCallback(trainer, IMAGES))
    with pytest.warns(XaiAbnWarning, match="no maps are sent to CometCallback; use TensorBoard") as caught:
        trainer.train()
    assert sum("no maps" in str(w.message) for w in caught) == 1
    trainer = trainer_of(tmp_path)
    trainer.add_callback(MapsCallback(trainer, IMAGES))
    with pytest.warns(XaiAbnWarning, match="the trainer has no logger"):
        trainer.train()
