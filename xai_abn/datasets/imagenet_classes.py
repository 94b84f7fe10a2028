"""ImageNet-1k classes that correspond to the classes of COCO and VOC.

A class is listed under a name where nearly everything in its images is that thing, whole: kinds (each dog breed is a
dog), not parts (a wing), contents (espresso) or mere look-alikes (a bagel). Where WordNet's gloss and ILSVRC's images
disagree, the images decide. Judgments that could have gone the other way:

- car: no ambulance and no police van, which COCO calls car or truck by their shape.
- motorcycle: moped and motor scooter, as COCO has no other name for them.
- train: single locomotives and carriages, as in COCO; no streetcar.
- truck: moving van, as its images show box trucks; no tractor, snowplow or half track.
- boat: ships (liner, container ship), which COCO calls boats; no aircraft carrier, submarine or wreck.
- dog: the 118 breeds; no dingo, dhole or African hunting dog. cat: the 5 house cats.
- sheep: ram and bighorn. cow: ox; no water buffalo or bison.
- elephant: tusker, whose images show elephants. bear: no panda, and no koala.
- handbag: purse, whose images show handbags. tie: Windsor tie and bow tie; no bolo tie.
- tennis racket: racket, whose images show tennis rackets, with a few others.
- wine glass: goblet; no red wine, which is the drink. cup: coffee mug, as COCO calls mugs cups; no measuring cup.
- knife: cleaver; no letter opener. sandwich: cheeseburger, as in COCO.
- chair: throne. bed: four-poster; no crib, cradle or bassinet.
- tv: monitor, as COCO calls computer monitors tv; no screen, which is one part of both.
- keyboard: no typewriter keyboard. clock: no watch, stopwatch, sundial or hourglass.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

#: COCO's names, and the WordNet id and first name of each ImageNet-1k class that is such a thing.
NAMED = {
    "bicycle": "n02835271 bicycle-built-for-two, n03792782 mountain bike",
    "car": (
        "n02814533 beach wagon, n02930766 cab, n03100240 convertible, n03594945 jeep, n03670208 limousine, "
        "n03770679 minivan, n03777568 Model T, n04037443 racer, n04285008 sports car"
    ),
    "motorcycle": "n03785016 moped, n03791053 motor scooter",
    "airplane": "n02690373 airliner, n04552348 warplane",
    "bus": "n03769881 minibus, n04146614 school bus, n04487081 trolleybus",
    "train": (
        "n02917067 bullet train, n03272562 electric locomotive, n03393912 freight car, n03895866 passenger car, "
        "n04310018 steam locomotive"
    ),
    "truck": (
        "n03345487 fire engine, n03417042 garbage truck, n03796401 moving van, n03930630 pickup, "
        "n04461696 tow truck, n04467665 trailer truck"
    ),
    "boat": (
        "n02951358 canoe, n02981792 catamaran, n03095699 container ship, n03344393 fireboat, n03447447 gondola, "
        "n03662601 lifeboat, n03673027 liner, n03947888 pirate, n04147183 schooner, n04273569 speedboat, "
        "n04483307 trimaran, n04612504 yawl"
    ),
    "traffic light": "n06874185 traffic light",
    "parking meter": "n03891332 parking meter",
    "bench": "n03891251 park bench",
    "bird": (
        "n01514668 cock, n01514859 hen, n01518878 ostrich, n01530575 brambling, n01531178 goldfinch, "
        "n01532829 house finch, n01534433 junco, n01537544 indigo bunting, n01558993 robin, n01560419 bulbul, "
        "n01580077 jay, n01582220 magpie, n01592084 chickadee, n01601694 water ouzel, n01608432 kite, "
        "n01614925 bald eagle, n01616318 vulture, n01622779 great grey owl, n01795545 black grouse, "
        "n01796340 ptarmigan, n01797886 ruffed grouse, n01798484 prairie chicken, n01806143 peacock, "
        "n01806567 quail, n01807496 partridge, n01817953 African grey, n01818515 macaw, "
        "n01819313 sulphur-crested cockatoo, n01820546 lorikeet, n01824575 coucal, n01828970 bee eater, "
        "n01829413 hornbill, n01833805 hummingbird, n01843065 jacamar, n01843383 toucan, n01847000 drake, "
        "n01855032 red-breasted merganser, n01855672 goose, n01860187 black swan, n02002556 white stork, "
        "n02002724 black stork, n02006656 spoonbill, n02007558 flamingo, n02009229 little blue heron, "
        "n02009912 American egret, n02011460 bittern, n02012849 crane, n02013706 limpkin, "
        "n02017213 European gallinule, n02018207 American coot, n02018795 bustard, n02025239 ruddy turnstone, "
        "n02027492 red-backed sandpiper, n02028035 redshank, n02033041 dowitcher, n02037110 oystercatcher, "
        "n02051845 pelican, n02056570 king penguin, n02058221 albatross"
    ),
    "cat": (
        "n02123045 tabby, n02123159 tiger cat, n02123394 Persian cat, n02123597 Siamese cat, n02124075 Egyptian cat"
    ),
    "dog": (
        "n02085620 Chihuahua, n02085782 Japanese spaniel, n02085936 Maltese dog, n02086079 Pekinese, "
        "n02086240 Shih-Tzu, n02086646 Blenheim spaniel, n02086910 papillon, n02087046 toy terrier, "
        "n02087394 Rhodesian ridgeback, n02088094 Afghan hound, n02088238 basset, n02088364 beagle, "
        "n02088466 bloodhound, n02088632 bluetick, n02089078 black-and-tan coonhound, n02089867 Walker hound, "
        "n02089973 English foxhound, n02090379 redbone, n02090622 borzoi, n02090721 Irish wolfhound, "
        "n02091032 Italian greyhound, n02091134 whippet, n02091244 Ibizan hound, n02091467 Norwegian elkhound, "
        "n02091635 otterhound, n02091831 Saluki, n02092002 Scottish deerhound, n02092339 Weimaraner, "
        "n02093256 Staffordshire bullterrier, n02093428 American Staffordshire terrier, "
        "n02093647 Bedlington terrier, n02093754 Border terrier, n02093859 Kerry blue terrier, "
        "n02093991 Irish terrier, n02094114 Norfolk terrier, n02094258 Norwich terrier, n02094433 Yorkshire terrier, "
        "n02095314 wire-haired fox terrier, n02095570 Lakeland terrier, n02095889 Sealyham terrier, "
        "n02096051 Airedale, n02096177 cairn, n02096294 Australian terrier, n02096437 Dandie Dinmont, "
        "n02096585 Boston bull, n02097047 miniature schnauzer, n02097130 giant schnauzer, "
        "n02097209 standard schnauzer, n02097298 Scotch terrier, n02097474 Tibetan terrier, n02097658 silky terrier, "
        "n02098105 soft-coated wheaten terrier, n02098286 West Highland white terrier, n02098413 Lhasa, "
        "n02099267 flat-coated retriever, n02099429 curly-coated retriever, n02099601 golden retriever, "
        "n02099712 Labrador retriever, n02099849 Chesapeake Bay retriever, n02100236 German short-haired pointer, "
        "n02100583 vizsla, n02100735 English setter, n02100877 Irish setter, n02101006 Gordon setter, "
        "n02101388 Brittany spaniel, n02101556 clumber, n02102040 English springer, "
        "n02102177 Welsh springer spaniel, n02102318 cocker spaniel, n02102480 Sussex spaniel, "
        "n02102973 Irish water spaniel, n02104029 kuvasz, n02104365 schipperke, n02105056 groenendael, "
        "n02105162 malinois, n02105251 briard, n02105412 kelpie, n02105505 komondor, n02105641 Old English sheepdog, "
        "n02105855 Shetland sheepdog, n02106030 collie, n02106166 Border collie, n02106382 Bouvier des Flandres, "
        "n02106550 Rottweiler, n02106662 German shepherd, n02107142 Doberman, n02107312 miniature pinscher, "
        "n02107574 Greater Swiss Mountain dog, n02107683 Bernese mountain dog, n02107908 Appenzeller, "
        "n02108000 EntleBucher, n02108089 boxer, n02108422 bull mastiff, n02108551 Tibetan mastiff, "
        "n02108915 French bulldog, n02109047 Great Dane, n02109525 Saint Bernard, n02109961 Eskimo dog, "
        "n02110063 malamute, n02110185 Siberian husky, n02110341 dalmatian, n02110627 affenpinscher, "
        "n02110806 basenji, n02110958 pug, n02111129 Leonberg, n02111277 Newfoundland, n02111500 Great Pyrenees, "
        "n02111889 Samoyed, n02112018 Pomeranian, n02112137 chow, n02112350 keeshond, n02112706 Brabancon griffon, "
        "n02113023 Pembroke, n02113186 Cardigan, n02113624 toy poodle, n02113712 miniature poodle, "
        "n02113799 standard poodle, n02113978 Mexican hairless"
    ),
    "horse": "n02389026 sorrel",
    "sheep": "n02412080 ram, n02415577 bighorn",
    "cow": "n02403003 ox",
    "elephant": "n01871265 tusker, n02504013 Indian elephant, n02504458 African elephant",
    "bear": "n02132136 brown bear, n02133161 American black bear, n02134084 ice bear, n02134418 sloth bear",
    "zebra": "n02391049 zebra",
    "backpack": "n02769748 backpack",
    "umbrella": "n04507155 umbrella",
    "handbag": "n04026417 purse",
    "tie": "n02883205 bow tie, n04591157 Windsor tie",
    "skis": "n04228054 ski",
    "sports ball": (
        "n02799071 baseball, n02802426 basketball, n03134739 croquet ball, n03445777 golf ball, "
        "n03942813 ping-pong ball, n04118538 rugby ball, n04254680 soccer ball, n04409515 tennis ball, "
        "n04540053 volleyball"
    ),
    "tennis racket": "n04039381 racket",
    "bottle": (
        "n02823428 beer bottle, n03937543 pill bottle, n03983396 pop bottle, n04557648 water bottle, "
        "n04591713 wine bottle"
    ),
    "wine glass": "n03443371 goblet",
    "cup": "n03063599 coffee mug, n07930864 cup",
    "knife": "n03041632 cleaver",
    "spoon": "n04597913 wooden spoon",
    "bowl": "n03775546 mixing bowl, n04263257 soup bowl",
    "banana": "n07753592 banana",
    "apple": "n07742313 Granny Smith",
    "sandwich": "n07697313 cheeseburger",
    "orange": "n07747607 orange",
    "broccoli": "n07714990 broccoli",
    "hot dog": "n07697537 hotdog",
    "pizza": "n07873807 pizza",
    "chair": "n02791124 barber chair, n03376595 folding chair, n04099969 rocking chair, n04429376 throne",
    "couch": "n04344873 studio couch",
    "bed": "n03388549 four-poster",
    "dining table": "n03201208 dining table",
    "tv": "n03782006 monitor, n04404412 television",
    "laptop": "n03642806 laptop, n03832673 notebook",
    "mouse": "n03793489 mouse",
    "remote": "n04074963 remote control",
    "keyboard": "n03085013 computer keyboard",
    "cell phone": "n02992529 cellular telephone",
    "microwave": "n03761084 microwave",
    "toaster": "n04442312 toaster",
    "sink": "n04553703 washbasin",
    "refrigerator": "n04070727 refrigerator",
    "clock": "n02708093 analog clock, n03196217 digital clock, n04548280 wall clock",
    "vase": "n04522168 vase",
    "teddy bear": "n04399382 teddy",
    "hair drier": "n03483316 hand blower",
}

#: COCO's names, and the WordNet ids of the ImageNet-1k classes that are such things.
COCO_TO_IMAGENET: dict[str, tuple[str, ...]] = {
    name: tuple(re.findall(r"\bn\d{8}\b", text)) for name, text in NAMED.items()
}

#: COCO's names that no ImageNet-1k class stands for, and why.
COCO_WITHOUT_IMAGENET: dict[str, str] = {
    "person": "no class for people in general; only scuba diver, groom and ballplayer",
    "fire hydrant": "no such class",
    "stop sign": "street sign is any sign at a road",
    "giraffe": "no such class",
    "suitcase": "no such class; chest, crate and mailbag are other things",
    "frisbee": "no such class",
    "snowboard": "no such class; ski comes in pairs",
    "kite": "no such class; ImageNet's kite is the bird",
    "baseball bat": "no such class",
    "baseball glove": "no such class; mitten is clothing",
    "skateboard": "no such class",
    "surfboard": "no such class",
    "fork": "no such class",
    "carrot": "no such class",
    "donut": "no such class; bagel is bread",
    "cake": "no such class; trifle is a pudding",
    "potted plant": "pot, flowerpot is the vessel, with or without a plant",
    "oven": "stove is any heater, rotisserie shows the roast, and images of Dutch oven show pots",
    "toilet": "toilet seat is one part of it",
    "book": "comic book is a magazine, and book jacket is a wrapper",
    "scissors": "no such class",
    "toothbrush": "no such class",
}

#: The 20 names of VOC, and COCO's names for the same things.
VOC_TO_COCO: dict[str, str] = {
    "aeroplane": "airplane",
    "bicycle": "bicycle",
    "bird": "bird",
    "boat": "boat",
    "bottle": "bottle",
    "bus": "bus",
    "car": "car",
    "cat": "cat",
    "chair": "chair",
    "cow": "cow",
    "diningtable": "dining table",
    "dog": "dog",
    "horse": "horse",
    "motorbike": "motorcycle",
    "person": "person",
    "pottedplant": "potted plant",
    "sheep": "sheep",
    "sofa": "couch",
    "train": "train",
    "tvmonitor": "tv",
}


def wnids_of(class_name: str) -> tuple[str, ...]:
    """Return the ImageNet-1k classes that a class of COCO or VOC stands for.

    Args:
        class_name: a name of COCO or VOC, such as ``"dog"`` or ``"tvmonitor"``, in upper or lower case.

    Returns:
        WordNet ids such as ``"n02085620"``; empty for a class without counterpart and for any other name.
    """
    name = class_name.strip().casefold()
    return COCO_TO_IMAGENET.get(VOC_TO_COCO.get(name, name), ())


def own_wnids(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return those names that are themselves WordNet ids of ImageNet-1k, each as its own counterpart.

    Args:
        names: class names of a data set, such as ``"n02085620"``.
    """
    looking = [name for name in names if re.fullmatch(r"n\d{8}", name)]
    return {name: (name,) for name in looking if name in known_wnids()}


def are_imagenet(labels: Sequence[str]) -> bool:
    """Return whether labels are those of ImageNet-1k in its order: names as programs spell them, or WordNet ids."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    if len(labels) != len(info.label_names()):
        return False
    own = ({info.index_to_label_name(i), _first(info.index_to_description(i))} for i in range(len(labels)))
    return sum(_first(label) in names for label, names in zip(labels, own, strict=True)) > len(labels) / 2


def _first(names: str) -> str:
    return names.partition(",")[0].strip().casefold()


@cache
def known_wnids() -> frozenset[str]:
    """Return the WordNet ids of the 1,000 classes of ImageNet-1k (ILSVRC2012)."""
    from timm.data.imagenet_info import ImageNetInfo

    return frozenset(ImageNetInfo().label_names())
