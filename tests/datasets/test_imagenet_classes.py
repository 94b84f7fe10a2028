"""Which ImageNet classes correspond to the classes of COCO and VOC."""

from __future__ import annotations

from xai_abn.datasets.imagenet_classes import (
    COCO_TO_IMAGENET,
    COCO_WITHOUT_IMAGENET,
    NAMED,
    VOC_TO_COCO,
    known_wnids,
    wnids_of,
)

COCO_NAMES = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli,
carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush""".replace("\n", " ").split(", ")


def test_every_coco_class_is_in_exactly_one_table():
    """The 80 classes either have counterparts or a reason for having none."""
    assert len(COCO_NAMES) == 80
    assert sorted([*COCO_TO_IMAGENET, *COCO_WITHOUT_IMAGENET]) == sorted(COCO_NAMES)
    assert all(COCO_TO_IMAGENET.values())
    assert all(reason and "\n" not in reason for reason in COCO_WITHOUT_IMAGENET.values())


def test_every_wnid_is_an_imagenet_class_and_named_right():
    """Each id is one of the 1,000, stands under one COCO class only, and is followed by its first name."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    first = {info.index_to_label_name(i): info.index_to_description(i).split(", ")[0] for i in range(1000)}
    assert first.keys() == known_wnids()
    listed = [pair.split(" ", 1) for text in NAMED.values() for pair in text.split(", ")]
    assert all(first[wnid] == name for wnid, name in listed)
    wnids = [wnid for wnids in COCO_TO_IMAGENET.values() for wnid in wnids]
    assert wnids == [wnid for wnid, _ in listed]
    assert len(wnids) == len(set(wnids))


def test_large_families_are_complete():
    """ILSVRC has 118 breeds of dog, 59 birds, 5 house cats and 4 bears."""
    assert {k: len(COCO_TO_IMAGENET[k]) for k in ("dog", "bird", "cat", "bear")} == {
        "dog": 118,
        "bird": 59,
        "cat": 5,
        "bear": 4,
    }


def test_voc_names_lead_to_coco_names():
    """The 20 names of VOC are known, and mean the same as COCO's."""
    assert len(VOC_TO_COCO) == 20
    assert set(VOC_TO_COCO.values()) <= set(COCO_NAMES)
    assert wnids_of("tvmonitor") == wnids_of("tv") != ()
    assert wnids_of("aeroplane") == COCO_TO_IMAGENET["airplane"]
    assert wnids_of("person") == wnids_of("pottedplant") == wnids_of("no such class") == ()
