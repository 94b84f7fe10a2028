#!/usr/bin/env bash
# Measure the class masks of abn-lite0 beside other maps of the same network.
#
#   benchmarks/class_masks/run.sh DATA OUTPUT [PART]
#
# DATA holds coco_multi/ (images/, instances.json) and imagenet_val/ (images/, boxes.csv). PART is development or
# set-aside, which is the default. Run it again to go on.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=$1 output=$2 part=${3:-set-aside}
python -m benchmarks.class_masks.split "$data" "$output"
methods=abn-mask,abn-mask:unite=5,abn,abn-class,grad-cam,layer-cam,center
objects=energy-pointing-game,pointing-game,peak-inside,best-iou,object-recall,all-objects-found
answers=insertion,deletion,average-drop

run() { # name, metrics, more
    xai-abn benchmark run --model abn-lite0-masks --output "$output/$part-$1.sqlite" --metric "$2" "${@:3}"
}

coco=(--data "coco:$output/$part/instances.json" --images "$data/coco_multi/images")
imagenet=(--data "imagenet-boxes:$output/$part/boxes.csv" --images "$data/imagenet_val/images")
run coco-maps "$objects,energy-confusion" "${coco[@]}" --method "$methods"
run imagenet-maps "$objects" "${imagenet[@]}" --method "$methods"
for grid in 2 3; do
    run grid$grid "grid-pointing,pointing-game" "${imagenet[@]}" --grid $grid --method "$methods"
done
run coco-answers "$answers" "${coco[@]}" --method "$methods"
run imagenet-answers "$answers" "${imagenet[@]}" --method "$methods"
# RISE asks the network 500 times for a map: it is compared on the first images alone
run coco-rise "insertion,deletion,energy-pointing-game,peak-inside" "${coco[@]}" --method abn-mask,rise:masks=500 --limit 40
run imagenet-rise "insertion,deletion,energy-pointing-game,peak-inside" "${imagenet[@]}" --method abn-mask,rise:masks=500 --limit 40
xai-abn benchmark report "$output/$part"-*.sqlite --output "$output/$part-report"
