"""Times COCOeval of pycocotools, one JSON request a line on stdin.

Request: {"op": "coco_eval", "n": 5000, "k": 100, "ap": 0.5, "budget_s": 2.0, "max_repeats": 10}
Answer:  {"peer", "peer_median_s", "peer_repeats", "peer_residual"} or {"error"}.

One pass is evaluate, accumulate and summarize of boxes that are loaded and indexed already, `k` detections in each of `n`
images. Data are those of `coco` in benches/detection.rs, number for number: the AP must be `ap`. One thread, as it has no more.
"""

import contextlib
import io
import time
from importlib.metadata import version

import numpy as np
import timing
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

WIDTH, HEIGHT, CLASSES = 640, 480, 80


def draw(image, entry, field):
    place = ((image * 128 + entry) * 8 + field).astype(np.uint64)
    z = (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def below(numbers, limit):
    return (numbers % np.asarray(limit, dtype=np.uint64)).astype(np.int64)


def drawn_boxes(image, entry):
    w, h = (8 + below(draw(image, entry, field), 192) for field in (1, 2))
    x, y = below(draw(image, entry, 3), WIDTH - w), below(draw(image, entry, 4), HEIGHT - h)
    return below(draw(image, entry, 0), CLASSES), np.stack([x, y, w, h], -1)


def ground_truth(images, count):
    image, entry = np.nonzero(np.arange(14) < count[:, None])
    classes, boxes = drawn_boxes(image, entry)
    crowds = below(draw(image, entry, 5), 100) == 0
    annotations = [
        {
            "id": at + 1,
            "image_id": int(image[at]) + 1,
            "category_id": int(classes[at]) + 1,
            "bbox": [float(side) for side in boxes[at]],
            "area": float(boxes[at][2] * boxes[at][3]),
            "iscrowd": int(crowds[at]),
        }
        for at in range(len(image))
    ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": at + 1, "width": WIDTH, "height": HEIGHT} for at in range(images)],
        "categories": [{"id": at + 1, "name": str(at)} for at in range(CLASSES)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def detections(images, most, count):
    image, at = (grid.ravel() for grid in np.indices((images, most)))
    is_object = at < count[image]
    entry = 16 + at
    classes, boxes = drawn_boxes(image, np.where(is_object, at, entry))
    moved = np.stack([below(draw(image, entry, field), 13) - 6 for field in (1, 2, 3, 4)], -1)
    first = draw(image, entry, 0)
    wrong = below(first // np.uint64(8), CLASSES)
    found = np.where(below(first, 8) == 0, wrong, classes)
    base = below(draw(image, np.int64(126), np.int64(0)), CLASSES)
    classes = np.where(is_object, found, (base + classes % 20) % CLASSES)
    boxes = np.where(is_object[:, None], boxes + moved, boxes)
    score = draw(image, entry, 5)
    score = np.where(is_object, 500_000 + below(score, 500_000), below(score, 600_000)) / 1e6
    return np.column_stack([image + 1, boxes, score, classes + 1]).astype(np.float64)


def measure(req):
    if req["op"] != "coco_eval":
        raise ValueError(f"unknown op {req['op']}")
    images = int(req["n"])
    with contextlib.redirect_stdout(io.StringIO()):
        count = 1 + below(draw(np.arange(images), np.int64(127), np.int64(0)), 14)
        truth = ground_truth(images, count)
        found = truth.loadRes(detections(images, int(req["k"]), count))
        stats = None

        def once():
            nonlocal stats
            start = time.perf_counter()
            run = COCOeval(truth, found, "bbox")
            run.evaluate()
            run.accumulate()
            run.summarize()
            stats = run.stats
            return time.perf_counter() - start

        budget, most = float(req.get("budget_s", 2.0)), int(req.get("max_repeats", 10))
        median, repeats = timing.timed(once, 0, budget, most)
    if abs(stats[0] - req["ap"]) > 1e-9:
        raise ValueError(f"expected an AP of {req['ap']}, got {stats[0]!r}")
    return timing.answer("COCOeval", median, repeats, library="pycocotools " + version("pycocotools"))


timing.serve(measure)
