"""Files as people bring them: the number belongs to this image and to this annotation."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo
from torch import nn

import xai_abn
from xai_abn.benchmark import BenchmarkSettings, benchmark
from xai_abn.benchmark.report.build import make_report
from xai_abn.benchmark.trials import class_indices
from xai_abn.cli.benchmark import _report
from xai_abn.datasets import Dataset, Sample, read_dataset
from xai_abn.datasets.batches import ConvertedWarning
from xai_abn.datasets.imagenet_classes import wnids_of
from xai_abn.errors import DatasetError, ImageLoadError, InvalidInputError
from xai_abn.images.loading import SkippedFilesWarning, find_images, load_image
from xai_abn.models.metadata import imagenet_labels

ORIENTATION = 0x0112


def save(path, size=(160, 120), orientation=None, seed=0):
    """An image of noise with a bright square, (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 90, (size[1], size[0], 3), dtype=np.uint8)
    image, exif = Image.fromarray(pixels), Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
    image.save(path, quality=95, exif=exif)


def coco(folder, box, size=(160, 120), names=("tabby",), recorded=True):
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", **({"width": size[0], "height": size[1]} if recorded else {})}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": 1, "category_id": i, "bbox": list(box)} for i in range(len(names))],
    }
    (folder / "instances.json").write_text(json.dumps(document))
    return f"coco:{folder}"


def voc(folder, box, size=(160, 120)):
    (folder / "Annotations").mkdir(parents=True)
    corners = "".join(f"<{n}>{v}</{n}>" for n, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    (folder / "Annotations" / "a.xml").write_text(
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
        f"<object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
    )
    return f"voc:{folder}"


def model(labels=("tabby", "cat")):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, len(labels))]
    return xai_abn.wrap(nn.Sequential(*layers).eval(), labels=labels, preprocess=xai_abn.Preprocess(size=64))


def run(data, tmp_path, methods=("uniform",), metrics=("energy-pointing-game",), **settings):
    return benchmark(model(), data, methods, metrics, tmp_path / "run.sqlite", BenchmarkSettings(**settings))


def values(tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "run.sqlite") as store:
        return [row[0] for row in store.execute("select value from results order by rowid")]


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_an_image_resized_after_annotating_is_refused(tmp_path, kind):
    """Its boxes are of another size, though they fit."""
    save(tmp_path / "images" / "a.jpg")
    box = (10, 10, 60, 60)
    data = read_dataset(coco(tmp_path, box, (320, 240)) if kind == "coco" else voc(tmp_path, box, (320, 240)))
    summary = run(data, tmp_path)
    assert summary.measured == 0
    assert "320x240" in summary.failed[0][1]
    assert "160x120" in summary.failed[0][1]


@pytest.mark.parametrize("size", [(160, 120), (0, 0), None])
def test_the_recorded_size_may_be_missing(tmp_path, size):
    """Some tools write 0, or nothing."""
    save(tmp_path / "images" / "a.jpg")
    data = read_dataset(coco(tmp_path, (0, 0, 80, 60), size or (1, 1), recorded=size is not None))
    assert run(data, tmp_path).failed == []
    assert values(tmp_path) == pytest.approx([0.25], abs=0.01)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_image_annotated_as_stored_is_refused_or_taken_as_stored(tmp_path, orientation):
    """A turned bitmap, and a box drawn on the stored pixels, in both frames inside the image."""
    save(tmp_path / "images" / "a.jpg", orientation=orientation)
    data = read_dataset(coco(tmp_path, (0, 0, 80, 60)))
    summary = run(data, tmp_path)
    assert summary.measured == 0
    assert "--exif ignore" in summary.failed[0][1]
    (tmp_path / "run.sqlite").unlink()
    assert run(data, tmp_path, exif="ignore").failed == []
    assert values(tmp_path) == pytest.approx([0.25], abs=0.01)


def test_an_upright_annotation_of_a_turned_image_is_right(tmp_path):
    """The size that is recorded is that of the image as it is shown."""
    save(tmp_path / "images" / "a.jpg", orientation=6)
    assert run(read_dataset(coco(tmp_path, (0, 0, 60, 80), (120, 160))), tmp_path).failed == []
    assert values(tmp_path) == pytest.approx([0.25], abs=0.01)


def test_images_as_stored_have_values_of_their_own(tmp_path):
    """A run may hold both."""
    save(tmp_path / "images" / "a.jpg", orientation=3)
    data = read_dataset(coco(tmp_path, (0, 0, 80, 60)))
    assert run(data, tmp_path).measured == 1
    assert run(data, tmp_path, exif="ignore").measured == 1


def test_run_lengths_of_another_size_cost_their_image(tmp_path):
    """COCO records the size of a mask, too."""
    save(tmp_path / "images" / "a.jpg")
    place = coco(tmp_path, (0, 0, 80, 60))
    document = json.loads((tmp_path / "instances.json").read_text())
    document["annotations"][0]["segmentation"] = {"size": [240, 320], "counts": [0, 240 * 320]}
    (tmp_path / "instances.json").write_text(json.dumps(document))
    summary = run(read_dataset(place), tmp_path)
    assert "320x240" in summary.failed[0][1]


def test_classes_that_the_model_does_not_know_are_told(tmp_path):
    """In the summary and in the run; case does not matter."""
    save(tmp_path / "images" / "a.jpg")
    summary = run(read_dataset(coco(tmp_path, (0, 0, 80, 60), names=("Tabby", "zebra"))), tmp_path)
    assert summary.unknown_classes == ("zebra",)
    assert len(values(tmp_path)) == 1


def test_a_class_that_several_labels_have_is_left_out(tmp_path):
    """ImageNet has two cranes; one of them would be explained for the other."""
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    cranes = xai_abn.wrap(net, labels=["crane", "dog", "crane"])
    data = Dataset("coco", {"train": [Sample("a.jpg")]}, ("crane", "dog"))
    assert class_indices(cranes, data, 3) == {"dog": (1,)}


def test_the_classes_that_share_a_label_are_told(tmp_path, capsys):
    """With their numbers, beside the classes that are not known at all."""
    save(tmp_path / "images" / "a.jpg")
    data = read_dataset(coco(tmp_path, (0, 0, 80, 60), names=("Crane", "dog", "emu")))
    cranes = model(("crane", "dog", "crane"))
    summary = benchmark(cranes, data, ["uniform"], ["energy-pointing-game"], tmp_path / "run.sqlite")
    assert summary.unknown_classes == ("Crane", "emu")
    assert summary.shared_labels == {"Crane": (0, 2)}
    _report(summary)
    said = capsys.readouterr().err
    assert "the model does not know the classes emu; their objects" in said
    assert "the model's classes 0, 2 are all called 'Crane'; its objects are left out; give" in said


def test_a_thousand_classes_are_those_of_imagenet_only_by_their_labels():
    """Else the cats and dogs of another model would be explained as ImageNet's breeds."""
    net = nn.Sequential(nn.Conv2d(3, 1000, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    data = Dataset("coco", {"train": [Sample("a.jpg")]}, ("dog",), {"dog": wnids_of("dog")})
    info = ImageNetInfo()
    for labels in (None, imagenet_labels(), info.label_names(), [info.index_to_description(i) for i in range(1000)]):
        assert len(class_indices(xai_abn.wrap(net, labels=labels), data, 1000)["dog"]) == 118
    own = [f"thing {i}" for i in range(999)]
    assert class_indices(xai_abn.wrap(net, labels=[*own, "dog"]), data, 1000) == {"dog": (999,)}
    with pytest.raises(DatasetError, match="knows none of the classes"):
        class_indices(xai_abn.wrap(net, labels=[*own, "wolf"]), data, 1000)


def test_a_link_that_leads_nowhere_is_told(tmp_path):
    """A folder of links to a disk that is not mounted."""
    save(tmp_path / "images" / "cat" / "a.jpg")
    (tmp_path / "images" / "cat" / "b.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.warns(SkippedFilesWarning, match=r"1 links lead nowhere: .*b\.jpg"):
        data = read_dataset(f"images:{tmp_path / 'images'}")
    assert len(data.samples) == 1
    with pytest.warns(SkippedFilesWarning, match=r"1 links lead nowhere: .*b\.jpg"):
        assert len(find_images(str(tmp_path / "images/cat/*.jpg"))) == 1


def test_a_folder_that_cannot_be_opened_is_told(tmp_path, monkeypatch):
    """Its images are not passed over in silence, and the folder itself is one line of error."""
    for name in ("a", "b"):
        save(tmp_path / "images" / "cat" / name / "1.jpg")
    shut = tmp_path / "images" / "cat" / "b"

    def refusing(function):
        def refuse(path="."):
            if str(path).startswith(str(shut)):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return refuse

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    with pytest.warns(SkippedFilesWarning, match=r"1 folders cannot be opened: .*b \(Permission denied\)"):
        assert len(find_images(tmp_path / "images")) == 1
    with pytest.raises(ImageLoadError, match=r"b: the folder cannot be opened \(Permission denied\)"):
        find_images(shut)
    shut = tmp_path / "images"
    with pytest.raises(DatasetError, match=r"images: the folder cannot be opened \(Permission denied\)"):
        read_dataset(f"images:{shut}")


def test_an_image_without_objects_is_no_failure(tmp_path):
    """Metrics that need none measure it, the others pass it."""
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "images" / "b.jpg", seed=1)
    place = coco(tmp_path, (0, 0, 80, 60))
    document = json.loads((tmp_path / "instances.json").read_text())
    document["images"].append({"id": 2, "file_name": "b.jpg"})
    (tmp_path / "instances.json").write_text(json.dumps(document))
    summary = run(read_dataset(place), tmp_path, metrics=("energy-pointing-game", "gini"))
    assert (summary.measured, summary.failed) == (2, [])


def test_copies_are_told(tmp_path):
    """Three files, two contents."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save(tmp_path / "images" / "cat" / f"{name}.jpg", seed=seed)
    summary = run(read_dataset(f"images:{tmp_path / 'images'}"), tmp_path, metrics=("gini",))
    assert (summary.measured, summary.copies) == (2, 1)


def test_images_converted_on_reading_are_told(tmp_path):
    """By a benchmark, too, once for each kind: 16 bits, CMYK, transparency."""
    folder = tmp_path / "images" / "cat"
    folder.mkdir(parents=True)
    for name in "ab":
        Image.fromarray(np.full((60, 60), 700, np.uint16)).save(folder / f"{name}.png")
    Image.new("CMYK", (60, 60), (9, 9, 9, 9)).save(folder / "c.jpg")
    Image.new("RGBA", (60, 60), (9, 9, 9, 9)).save(folder / "d.png")
    with pytest.warns(ConvertedWarning) as told:
        run(read_dataset(f"images:{tmp_path / 'images'}"), tmp_path, metrics=("gini",))
    assert [str(warning.message).partition(":")[0] for warning in told] == ["a.png", "c.jpg", "d.png"]


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_a_name_in_other_bytes_than_utf8_is_measured(tmp_path):
    """As in archives made elsewhere."""
    save(tmp_path / "images" / "cat" / "a.jpg")
    folder = os.fsencode(tmp_path / "images" / "cat")
    os.rename(os.path.join(folder, b"a.jpg"), os.path.join(folder, b"caf\xe9.jpg"))
    summary = run(read_dataset(f"images:{tmp_path / 'images'}"), tmp_path, metrics=("gini",))
    assert (summary.measured, summary.failed) == (1, [])
    make_report([tmp_path / "run.sqlite"]).save(tmp_path / "report")


def test_a_report_of_baselines_alone_is_written(tmp_path):
    """There is no agreement of metrics to show."""
    save(tmp_path / "images" / "cat" / "a.jpg")
    data = read_dataset(f"images:{tmp_path / 'images'}")
    run(data, tmp_path, ("center", "sobel"), ("deletion",))
    make_report([tmp_path / "run.sqlite"]).save(tmp_path / "report")
    assert (tmp_path / "report" / "report.html").is_file()


# What a folder means.


def folders(root, *paths):
    for number, path in enumerate(paths):
        save(root / path, (20, 20), seed=number)
    return f"images:{root}"


@pytest.mark.parametrize(
    ("train", "other", "part"),
    [
        ("training_set", "test_set", "test"),
        ("seg_train", "seg_test", "test"),
        ("train_images", "val_images", "validation"),
        ("Train2017", "Valid2017", "validation"),
        ("my-training", "my-testing", "test"),
        ("train", "valid", "validation"),
        ("Training", "Testing", "test"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_splits_are_no_classes(tmp_path, train, other, part, nested):
    """Whatever they are called, and with the folder in a folder of the same name, as in Kaggle's archives."""
    inner = {name: f"{name}/{name}" if nested else name for name in (train, other)}
    place = folders(tmp_path, *(f"{inner[s]}/{c}/{s}.jpg" for s in (train, other) for c in ("cat", "dog")))
    data = read_dataset(place)
    assert data.class_names == ("cat", "dog")
    assert {name: len(samples) for name, samples in data.splits.items()} == {"train": 2, part: 2}


def test_folders_that_look_like_splits_are_not_learned_as_classes(tmp_path):
    """Two folders with the same folders inside."""
    with pytest.raises(DatasetError, match="look like splits"):
        read_dataset(folders(tmp_path, "one/cat/a.jpg", "one/dog/a.jpg", "two/cat/a.jpg", "two/dog/a.jpg"))


def test_classes_may_be_called_as_a_split_or_have_folders(tmp_path):
    """Bullet trains and model trains are classes; so are folders with folders of their own."""
    data = read_dataset(folders(tmp_path / "a", "bullet train/a.jpg", "bus/a.jpg"))
    assert data.class_names == ("bullet train", "bus")
    data = read_dataset(folders(tmp_path / "b", "cat/2020/a.jpg", "dog/2021/a.jpg"))
    assert data.class_names == ("cat", "dog")


def test_linked_folders_are_followed(tmp_path):
    """Of classes, below classes, and in a circle."""
    folders(tmp_path / "disk", "more/a.jpg", "more/b.jpg", "dog/c.jpg")
    folders(tmp_path / "data", "cat/d.jpg")
    (tmp_path / "data" / "cat" / "more").symlink_to(tmp_path / "disk" / "more")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "disk" / "dog")
    (tmp_path / "data" / "cat" / "again").symlink_to(tmp_path / "data" / "cat")
    data = read_dataset(f"images:{tmp_path / 'data'}")
    assert [s.label for s in data.samples] == ["cat"] * 3 + ["dog"]


def test_files_skipped_by_their_ending_are_counted(tmp_path):
    """A telephone's .HEIC is no .JPG, and a .jfif is."""
    folders(tmp_path, "a.jpg", "b.JPG")
    (tmp_path / "a.jpg").rename(tmp_path / "a.jfif")
    for name in ("c.HEIC", "d.heic", "e", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(SkippedFilesWarning, match=r"3 files .*2 \.heic, 1 no ending"):
        assert len(find_images(tmp_path)) == 2


# Attributes.

CELEBA = "image_id,Smiling,Young\n" + "".join(f"{i:06}.jpg,{i % 2},{i // 3 % 2}\n" for i in range(12))
PARTITION = [0] * 6 + [1] * 3 + [2] * 3


def celeba(folder):
    for i in range(12):
        save(folder / f"{i:06}.jpg", (20, 20), seed=i)


@pytest.mark.parametrize("form", ["csv beside", "txt beside", "column", "column of words", "original layout"])
def test_partitions_are_followed_in_every_form(tmp_path, form):
    """Faces of the test split are never trained on."""
    place = tmp_path / "list_attr_celeba.csv"
    celeba(tmp_path / ("Img/img_align_celeba" if form == "original layout" else "img_align_celeba/img_align_celeba"))
    rows = CELEBA.splitlines()
    place.write_text(CELEBA)
    names = [row.partition(",")[0] for row in rows[1:]]
    if form == "csv beside":
        lines = [f"{n},{p}" for n, p in zip(names, PARTITION, strict=True)]
        (tmp_path / "list_eval_partition.csv").write_text("\n".join(["image_id,partition", *lines]))
    elif form == "txt beside":
        lines = [f"{n} {p}" for n, p in zip(names, PARTITION, strict=True)]
        (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines))
    elif form == "original layout":
        (tmp_path / "Anno").mkdir()
        (tmp_path / "Eval").mkdir()
        place = tmp_path / "Anno" / "list_attr_celeba.txt"
        body = [
            " ".join(row.split(",")[:1] + ["1" if v == "1" else "-1" for v in row.split(",")[1:]]) for row in rows[1:]
        ]
        place.write_text("\n".join(["12", "Smiling Young", *body]))
        lines = [f"{n} {p}" for n, p in zip(names, PARTITION, strict=True)]
        (tmp_path / "Eval" / "list_eval_partition.txt").write_text("\n".join(lines))
    else:
        words = PARTITION if form == "column" else [("train", "val", "test")[p] for p in PARTITION]
        place.write_text("\n".join(f"{row},{w}" for row, w in zip(rows, ["partition", *words], strict=True)))
    data = read_dataset(f"attributes:{place}")
    assert data.class_names == ("Smiling", "Young")
    assert {name: len(samples) for name, samples in data.splits.items()} == {"train": 6, "validation": 3, "test": 3}
    assert all(s.source.endswith(("9.jpg", "10.jpg", "11.jpg")) for s in data.splits["test"])


def test_absent_faces_say_where_they_were_looked_for(tmp_path):
    """And the folder can be said."""
    (tmp_path / "list_attr_celeba.csv").write_text(CELEBA)
    with pytest.raises(DatasetError, match=r"000000\.jpg: no such file; looked for it in .*img_align_celeba"):
        read_dataset(f"attributes:{tmp_path / 'list_attr_celeba.csv'}")
    celeba(tmp_path / "faces")
    data = read_dataset(f"attributes:{tmp_path / 'list_attr_celeba.csv'}", images=tmp_path / "faces")
    assert len(data.samples) == 12


# ImageNet.


def test_boxes_of_kaggle_are_read(tmp_path):
    """As its archive has them."""
    save(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val" / "ILSVRC2012_val_00000001.JPEG")
    content = "ImageId,PredictionString\nILSVRC2012_val_00000001,n02123045 1 2 30 40 n02123045 50 60 70 80 \n"
    (tmp_path / "LOC_val_solution.csv").write_text(content)
    (sample,) = read_dataset(f"imagenet-boxes:{tmp_path / 'LOC_val_solution.csv'}").samples
    assert [o.box for o in sample.objects] == [(1, 2, 30, 40), (50, 60, 70, 80)]
    assert sample.label == "n02123045"


def test_the_folder_of_images_is_refused_where_it_means_nothing(tmp_path):
    """The place says it."""
    with pytest.raises(InvalidInputError, match="PLACE"):
        read_dataset(folders(tmp_path, "cat/a.jpg"), images=tmp_path)


def test_a_folder_alone_is_answered_with_what_was_meant(tmp_path):
    """KIND is missing."""
    with pytest.raises(DatasetError, match=f"did you mean images:{tmp_path}"):
        read_dataset(str(tmp_path))


def test_a_stored_image_is_not_turned(tmp_path):
    """Only where that is asked for."""
    save(tmp_path / "a.jpg", orientation=6)
    assert load_image(tmp_path / "a.jpg").image.size == (120, 160)
    assert load_image(tmp_path / "a.jpg", upright=False).image.size == (160, 120)


@pytest.mark.parametrize("extra", [["seg_pred/x.jpg"], ["single_prediction/x.jpg"], ["__MACOSX/x/y.jpg"], []])
@pytest.mark.parametrize("kind", ["seg_{}", "{}set", "{}ing_set", "{}1", "{}_images"])
def test_other_folders_beside_splits_make_no_classes_of_them(tmp_path, kind, extra):
    """They are left out, with a warning unless the system made them; the splits need not hold the same classes."""
    train, test = kind.format("train"), kind.format("test")
    place = folders(tmp_path, f"{train}/cat/a.jpg", f"{train}/dog/a.jpg", f"{test}/cat/b.jpg", *extra)
    if extra and "__MACOSX" not in extra[0]:
        with pytest.warns(UserWarning, match="not used"):
            data = read_dataset(place)
    else:
        data = read_dataset(place)
    assert data.class_names == ("cat", "dog")
    assert {name: len(samples) for name, samples in data.splits.items()} == {"train": 2, "test": 1}


@pytest.mark.parametrize(
    "paths",
    [
        ["cat/train/a.jpg", "cat/test/b.jpg", "cow/train/a.jpg"],
        ["one/cat/a.jpg", "one/dog/a.jpg", "two/cat/a.jpg", "two/dog/a.jpg", "three/cow/a.jpg"],
        ["training_set/cat/a.jpg", "single_prediction/b.jpg"],
    ],
)
def test_splits_in_other_places_are_refused(tmp_path, paths):
    """Classes first, splits under names that say nothing, one split alone."""
    with pytest.raises(DatasetError, match="look like splits or hold splits"):
        read_dataset(folders(tmp_path, *paths))


def test_a_folder_of_images_in_every_class_is_no_split(tmp_path):
    """As in Tiny ImageNet."""
    data = read_dataset(folders(tmp_path, "n01443537/images/a.jpg", "n01629819/images/b.jpg"))
    assert data.class_names == ("n01443537", "n01629819")


@pytest.mark.parametrize("column", ["is_train", "fold", "data_split", "Usage", "test"])
def test_columns_that_may_be_splits_are_refused(tmp_path, column):
    """They are no attributes to learn; with a capital letter, the known ones are read."""
    celeba(tmp_path / "images")
    rows = CELEBA.splitlines()
    for name, words in ((column, ["1"] * 12), ("Partition", [str(p) for p in PARTITION])):
        text = "\n".join(f"{row},{word}" for row, word in zip(rows, [name, *words], strict=True))
        (tmp_path / "list.csv").write_text(text)
        if name == column:
            with pytest.raises(DatasetError, match="looks like a split"):
                read_dataset(f"attributes:{tmp_path / 'list.csv'}")
        else:
            assert len(read_dataset(f"attributes:{tmp_path / 'list.csv'}").splits["test"]) == 3


def test_boxes_as_shares_of_the_image_are_refused(tmp_path):
    """They are not a pixel in the corner."""
    save(tmp_path / "images" / "a.jpg")
    summary = run(read_dataset(coco(tmp_path, (0.1, 0.1, 0.5, 0.5))), tmp_path)
    assert "shares of the image" in summary.failed[0][1]


def test_two_rows_of_one_name_in_two_folders_do_not_share_an_image(tmp_path):
    """A name without its folder is used only if it is unique."""
    save(tmp_path / "images" / "1.jpg")
    rows = "file,wnid,boxes\na/1.jpg,n02123045,1 2 3 4\nb/1.jpg,n02123045,1 2 3 4\n"
    (tmp_path / "boxes.csv").write_text(rows)
    with pytest.raises(DatasetError, match=r"a/1\.jpg: no such file"):
        read_dataset(f"imagenet-boxes:{tmp_path / 'boxes.csv'}")


def test_a_damaged_annotation_of_voc_costs_its_image(tmp_path):
    """And no other."""
    place = voc(tmp_path, (1, 1, 9, 9))
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "images" / "b.jpg")
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation><object>")
    data = read_dataset(place)
    assert len(data.samples) == 1
    assert "damaged XML" in data.problems[0][1]


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_a_class_in_other_bytes_than_utf8_is_measured(tmp_path):
    """As its images are."""
    save(tmp_path / "images" / "cat" / "a.jpg")
    folder = os.fsencode(tmp_path / "images")
    os.rename(os.path.join(folder, b"cat"), os.path.join(folder, b"caf\xe9"))
    summary = run(read_dataset(f"images:{tmp_path / 'images'}"), tmp_path, metrics=("gini",))
    assert (summary.measured, summary.failed) == (1, [])
