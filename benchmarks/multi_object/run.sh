#!/usr/bin/env bash
# Measure abn-lite0 and lite0 on images with several objects, images of one object, and grids of images.
#
#   benchmarks/multi_object/run.sh DATA OUTPUT
#
# DATA holds coco_multi/ (images/, instances.json) and imagenet_val/ (images/, boxes.csv). Run it again to go on.
set -euo pipefail
data=$1 output=$2
mkdir -p "$output"
maps=pointing-game,pointing-game-difficult,energy-pointing-game,energy-confusion,best-iou,pxap
maps=$maps,object-recall,all-objects-found,peak-inside,gini
curves=deletion,insertion
abn=abn,abn-class,grad-cam,center,random-14,sobel
lite0=cam,grad-cam,center,random-7,random-14,sobel
coco=coco:$data/coco_multi imagenet=imagenet-boxes:$data/imagenet_val/boxes.csv

run() { # name, model, methods, metrics, more
    xai-abn benchmark run --bf16 --output "$output/$1.sqlite" --model "$2" --method "$3" --metric "$4" "${@:5}"
}

# deletion and insertion: lite0 on all 400 and 200 COCO images, abn-lite0 on 100 and 200; the rest on 200 and all 382
run imagenet-lite0 lite0 "$lite0" "$curves,pointing-game,energy-pointing-game" --data "$imagenet"
run coco-lite0 lite0 "$lite0" "$curves" --data "$coco" --limit 200
run coco-abn abn-lite0 "$abn" "$curves" --data "$coco" --limit 200
run imagenet-abn abn-lite0 "$abn" "$curves" --data "$imagenet" --limit 100
for model in lite0 abn; do
    name=${model/#abn/abn-lite0}
    methods=${!model},uniform
    run coco-$model "$name" "$methods" "$maps" --data "$coco"
    run imagenet-$model "$name" "$methods" "$maps" --data "$imagenet" --limit 200
    for grid in 2 3; do
        run grid$grid-$model "$name" "$methods" grid-pointing,energy-confusion,pointing-game --data "$imagenet" --grid $grid
    done
done
xai-abn benchmark report "$output"/coco-*.sqlite "$output"/imagenet-*.sqlite "$output"/grid*.sqlite --output "$output/report"
