"""Codec, geometry and evaluation of the keypoint example, against formulas, pictures and pycocotools."""

from __future__ import annotations

import json
import sys

import numpy as np
import paddle
import pytest
from PIL import Image
from places import ROOT

sys.path.insert(0, str(ROOT / "examples" / "keypoints"))

import affine
import coco
import evaluation
import generator
import layouts
from dataset import Augment, KeypointDataset

from paddlelite_callbacks import models
from paddlelite_callbacks.models import FlipTest, HeatmapLoss, decode_heatmaps, draw_heatmaps


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return generator.generate(tmp_path_factory.mktemp("toy"), 12, seed=3)


def perfect_results(dataset, noise=0.0):
    """What a network would give that answers with the ground truth, moved by ``noise`` pixels of the image."""
    random = np.random.RandomState(0)
    return [
        {
            "image_id": person.image_id,
            "category_id": 1,
            "keypoints": np.concatenate([person.joints + noise * random.randn(17, 2), np.ones((17, 1))], axis=1)
            .reshape(-1)
            .tolist(),
            "score": 1.0,
            "area": 1.0,
            "index": index,
        }
        for index, person in enumerate(dataset.people)
    ]


# codec


@pytest.mark.parametrize(("dark", "unbiased", "bound"), [(False, False, 0.8), (False, True, 0.36), (True, True, 0.03)])
def test_decoding_finds_the_drawn_place(dark, unbiased, bound):
    random = np.random.RandomState(0)
    joints = random.uniform(4, 40, (200, 2))
    maps, weight = draw_heatmaps(joints, np.ones(200), (48, 48), sigma=2.0, unbiased=unbiased)
    places, heights = decode_heatmaps(maps[None], dark=dark)
    assert weight.all()
    assert np.linalg.norm(places[0] - joints, axis=1).max() < bound
    assert heights.min() > 0.9


def test_a_drawn_heatmap_is_the_gaussian():
    maps, weight = draw_heatmaps(
        np.array([[5.3, 7.6], [-40.0, 3.0], [1.0, 1.0]]), np.array([2, 2, 0]), (16, 12), sigma=2
    )
    y, x = np.mgrid[:16, :12]
    expected = np.exp(-((x - 5) ** 2 + (y - 8) ** 2) / 8)
    near = (abs(x - 5) <= 6) & (abs(y - 8) <= 6)
    np.testing.assert_allclose(maps[0][near], expected[near], atol=2e-4)
    assert weight.tolist() == [1, 0, 0]
    assert not maps[1:].any()


def test_empty_maps_and_borders_decode_without_a_step():
    maps = np.zeros((1, 3, 8, 8), "float32")
    maps[0, 1, 0, 7] = 1.0
    maps[0, 2] = -1.0
    for dark in (False, True):
        places, heights = decode_heatmaps(maps, dark=dark)
        assert places[0].tolist() == [[0, 0], [7, 0], [0, 0]]
        assert heights[0].tolist() == [0, 1, -1]


def test_the_loss_is_the_mean_over_labelled_joints_by_hand():
    random = np.random.RandomState(0)
    output, target = random.randn(2, 2, 3, 5, 4).astype("float32")
    weight = np.array([[1, 0, 1], [0, 1, 1]], "float32")
    by_hand = np.mean(
        [0.5 * np.mean((weight[:, j, None, None] * (output[:, j] - target[:, j])) ** 2) for j in range(3)]
    )
    got = HeatmapLoss()(*map(paddle.to_tensor, (output, target, weight)))
    assert float(got) == pytest.approx(float(by_hand), rel=1e-5)


def test_flip_test_averages_with_the_mirror_image():
    net = lambda x: x[:, :4, ::4, ::4] * paddle.to_tensor([1.0, 2, 3, 4]).reshape([1, 4, 1, 1])  # noqa: E731
    x = paddle.randn([2, 4, 16, 16])
    got = FlipTest(net, [(1, 2)], shift=True)(x).numpy()
    straight = net(x).numpy()
    mirrored = net(x.flip([3])).numpy()[:, [0, 2, 1, 3], :, ::-1]
    mirrored[..., 1:] = mirrored[..., :-1].copy()
    np.testing.assert_allclose(got, (straight + mirrored) / 2, rtol=1e-6)


# geometry


@pytest.mark.parametrize("udp", [False, True])
def test_the_round_trip_through_a_region_is_exact(udp):
    centre, size = affine.box_to_region((13.5, 20.0, 60.0, 30.0), 192 / 256)
    assert size[0] / size[1] == pytest.approx(192 / 256)
    assert size[0] == pytest.approx(75.0)
    matrix = affine.region_matrix(centre, size, (256, 192), degrees=33.0, udp=udp)
    points = np.random.RandomState(0).uniform(0, 300, (50, 2))
    there = affine.joints_through(matrix, points)
    np.testing.assert_allclose(affine.joints_through(matrix, there, inverse=True), points, atol=1e-10)
    np.testing.assert_allclose(affine.joints_through(matrix, centre), (np.array([192, 256]) - udp) / 2, atol=1e-9)


def test_the_warp_without_opencv_equals_opencvs():
    image = np.random.RandomState(0).randint(0, 255, (40, 50, 3)).astype("uint8")
    matrix = affine.region_matrix(np.array([25.0, 20.0]), np.array([48.0, 64.0]), (64, 48), degrees=20)
    cv2 = pytest.importorskip("cv2")
    expected = cv2.warpAffine(image, matrix, (48, 64)).astype(int)
    difference = np.abs(affine.warp_numpy(image, matrix, (64, 48)) - expected)
    assert np.median(difference) <= 1  # OpenCV rounds places to 1/32 pixel
    assert difference.mean() < 4


@pytest.mark.parametrize("udp", [False, True])
def test_augmented_joints_land_on_the_drawn_joints(tmp_path, udp):
    """A picture with one coloured disc a joint: after any augmentation the disc lies where the joint is said to be."""
    random = np.random.RandomState(0)
    places = np.stack([20 + 25 * (np.arange(17) % 5), 20 + 30 * (np.arange(17) // 5)], axis=1).astype(float)
    colours = random.randint(60, 256, (17, 3))
    y, x = np.mgrid[:160, :160]
    picture = np.zeros((160, 160, 3), "uint8")
    for place, colour in zip(places, colours, strict=True):
        picture[(x - place[0]) ** 2 + (y - place[1]) ** 2 <= 49] = colour
    Image.fromarray(picture).save(tmp_path / "a.png")
    person = coco.Person(
        image_id=1, path=tmp_path / "a.png", box=(10, 10, 120, 130), joints=places, visible=np.full(17, 2.0)
    )
    people = coco.People(people=[person], dropped=coco.Counter(), annotations=tmp_path / "a.json", image_ids=[1])
    dataset = KeypointDataset(people, (128, 96), augment=Augment(), udp=udp)
    swapped = list(range(17))
    for left, right in layouts.COCO_BODY.flip_pairs:
        swapped[left], swapped[right] = right, left
    np.random.seed(0)
    mirrored, checked = 0, 0
    for _ in range(40):
        image, joints, _ = dataset.sample(0)
        at = np.floor(joints + 0.5).astype(int)
        inside = ((at >= 4) & (at < [92, 124])).all(1)
        found = image[at[inside][:, 1], at[inside][:, 0]].astype(int)
        straight = np.abs(found - colours[inside]).max(initial=0) < 8
        flipped = np.abs(found - colours[np.array(swapped)[inside]]).max(initial=0) < 8
        assert straight or flipped
        mirrored, checked = mirrored + (flipped and not straight), checked + int(inside.sum())
    assert 5 < mirrored < 35
    assert checked > 200


# evaluation


def test_ground_truth_gives_ap_1_and_noise_lowers_it_as_oks_says(toy):
    dataset = KeypointDataset(coco.read_people(*toy), (256, 192))
    assert evaluation.coco_ap(perfect_results(dataset), toy[0])["AP"] == pytest.approx(1.0)
    figures = [evaluation.coco_ap(perfect_results(dataset, noise), toy[0])["AP"] for noise in (1, 4, 12, 60)]
    assert figures == sorted(figures, reverse=True)
    assert figures[0] > 0.7
    assert figures[-1] < 0.05
    assert evaluation.coco_ap([], toy[0])["AP"] == 0.0


def test_oks_is_cocos_formula_and_pycocotools_value(toy):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    record = json.loads(toy[0].read_text())["annotations"][0]
    joints = np.array(record["keypoints"]).reshape(17, 3)
    moved = joints[:, :2] + [3.0, -2.0]
    labelled = joints[:, 2] > 0
    by_hand = np.mean(
        [
            np.exp(-13.0 / (2 * record["area"] * (2 * s) ** 2))
            for s, ok in zip(layouts.COCO_BODY.sigmas, labelled, strict=True)
            if ok
        ]
    )
    got = evaluation.oks(
        joints[labelled, :2],
        moved[labelled][None],
        np.array([record["area"]]),
        sigmas=layouts.COCO_BODY.sigmas[labelled],
    )
    assert got[0] == pytest.approx(by_hand)
    truth = COCO(str(toy[0]))
    result = {
        "image_id": record["image_id"],
        "category_id": 1,
        "score": 1.0,
        "keypoints": np.concatenate([moved, np.ones((17, 1))], axis=1).reshape(-1).tolist(),
    }
    theirs = COCOeval(truth, truth.loadRes([result]), "keypoints")
    theirs.evaluate()
    first = [a["id"] for a in truth.loadAnns(truth.getAnnIds(imgIds=[record["image_id"]]))].index(record["id"])
    assert got[0] == pytest.approx(theirs.ious[record["image_id"], 1][0][first], rel=1e-6)


def test_oks_nms_drops_the_lesser_of_two_alike(toy):
    dataset = KeypointDataset(coco.read_people(*toy), (256, 192))
    results = perfect_results(dataset)[:2]
    for result in results:
        result["area"] = 5000.0
    twin = {**results[0], "score": 0.5}
    twin["keypoints"] = [value + 0.1 for value in twin["keypoints"]]
    kept = evaluation.oks_nms([twin, *results])
    assert [item["score"] for item in kept] == [1.0, 1.0]
    assert len(evaluation.oks_nms([twin, *results], threshold=1.0)) == 3


class Oracle(paddle.nn.Layer):
    """Answers with the target heatmaps, which ride along in the image channels."""

    def forward(self, x):
        return x


@pytest.mark.parametrize(("udp", "dark", "least"), [(False, False, 0.93), (False, True, 0.97), (True, True, 0.97)])
def test_the_metric_in_hapi_gives_nearly_1_for_perfect_heatmaps(toy, udp, dark, least, tmp_path):
    dataset = KeypointDataset(coco.read_people(*toy), (256, 192), udp=udp, unbiased=dark)

    class Answers(paddle.io.Dataset):
        def __len__(self):
            return len(dataset)

        def __getitem__(self, index):
            _, maps, weight, number = dataset[index]
            return maps, maps, weight, number

    spec = paddle.static.InputSpec
    labels = [spec([None, 17, 64, 48], name="h"), spec([None, 17], name="w"), spec([None], "int64", "i")]
    model = paddle.Model(Oracle(), [spec([None, 17, 64, 48], name="x")], labels)
    metric = evaluation.KeypointAP(dataset, dark=dark)
    model.prepare(loss=HeatmapLoss(), metrics=metric)
    figures = model.evaluate(Answers(), batch_size=8, verbose=0)
    assert figures["AP"] > least
    evaluation.write_results(metric.results, tmp_path / "results.json")
    assert evaluation.coco_ap(json.loads((tmp_path / "results.json").read_text()), toy[0])["AP"] == figures["AP"]


def test_a_light_network_learns_the_toy_data(toy):
    dataset = KeypointDataset(coco.read_people(*toy), (64, 64), sigma=1.0)
    network = models.keypoint_net(models.lite_hrnet_18())
    batch = [paddle.to_tensor(np.stack(part)) for part in zip(*[dataset[i] for i in range(6)], strict=True)]
    optimizer = paddle.optimizer.Adam(2e-3, parameters=network.parameters())
    losses = []
    for _ in range(12):
        loss = HeatmapLoss()(network(batch[0]), *batch[1:])
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
