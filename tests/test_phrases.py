"""Loaders of phrases on small files in the formats in which the data sets are published."""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures
from pycocotools import mask as coco_masks

from lar_core.data.phrases import Phrase, Place, Unusable, phrases
from lar_core.run.errors import LarError

SIZE = (12, 16)  # height, width


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pictures.new("RGB", SIZE[::-1], "green").save(path)


def rectangle(left, top, right, bottom):
    mask = np.zeros(SIZE, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


@pytest.fixture
def refcoco_m(tmp_path):
    buffer = io.BytesIO()
    Pictures.new("RGB", SIZE[::-1]).save(buffer, "png")
    def sample(box, sentences):
        runs = coco_masks.encode(np.asfortranarray(rectangle(*box)))
        return {"id": 1, "image_id": 7, "category": "bowl", "supercategory": "kitchen", "label": "bowl",
                "sentences": sentences, "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "mask": {"counts": runs["counts"].decode(), "size": list(SIZE)}}
    row = {"image": {"bytes": buffer.getvalue(), "path": "a.png"}, "image_id": 7, "file_name": "a.png",
           "samples": [sample((2, 3, 6, 9), ["left bowl", "the dark one"]), sample((10, 1, 14, 5), ["right bowl"])]}
    kinds = {"id": Value("int64"), "image_id": Value("int64"), "category": Value("string"),
             "supercategory": Value("string"), "label": Value("string"), "sentences": List(Value("string")),
             "bbox": List(Value("float32")), "mask": {"counts": Value("string"), "size": List(Value("int32"))}}
    features = Features({"image": Image(), "image_id": Value("int64"), "file_name": Value("string"),
                         "samples": List(kinds)})
    (tmp_path / "data").mkdir()
    Dataset.from_list([row], features=features).to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    return tmp_path


def refcoco(folder, refs=None):
    refs = refs if refs is not None else [
        {"ref_id": 1, "ann_id": 11, "image_id": 5, "category_id": 51, "file_name": "COCO_train2014_5_11.jpg",
         "split": "testA", "sent_ids": [1, 2], "sentences": [
             {"sent_id": 1, "sent": "bowl on the left", "raw": "Bowl on the left", "tokens": ["bowl"]},
             {"sent_id": 2, "sent": "black bowl", "raw": "black bowl", "tokens": ["black", "bowl"]}]},
        {"ref_id": 2, "ann_id": 12, "image_id": 5, "category_id": 51, "file_name": "x", "split": "train",
         "sent_ids": [3], "sentences": [{"sent_id": 3, "sent": "other bowl", "raw": "other bowl", "tokens": []}]}]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    things = [{"id": 11, "image_id": 5, "category_id": 51, "bbox": [2, 3, 4, 6],
               "segmentation": [[2, 3, 6, 3, 6, 9, 2, 9]]},
              {"id": 12, "image_id": 5, "category_id": 51, "bbox": [10, 1, 2, 2],
               "segmentation": {"counts": [121, 2, 10, 2, 57], "size": list(SIZE)}}]
    (folder / "instances.json").write_text(json.dumps({"images": [{"id": 5, "file_name": "COCO_train2014_5.jpg"}],
                                                       "annotations": things, "categories": []}))
    picture(folder / "images" / "COCO_train2014_5.jpg")
    return folder


def flickr30k(folder):
    (folder / "val.txt").write_text("36979\n")
    for name in ("Sentences", "Annotations"):
        (folder / name).mkdir()
    (folder / "Sentences" / "36979.txt").write_text(
        "[/EN#1/people A group of friends] playing [/EN#2/other cards] in [/EN#3/scene a room] .\n"
        "[/EN#1/people Two men] and [/EN#0/notvisual each other] .\n")
    (folder / "Annotations" / "36979.xml").write_text(
        "<annotation><filename>36979.jpg</filename><size><width>16</width><height>12</height><depth>3</depth></size>"
        "<object><name>1</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>4</xmax><ymax>6</ymax></bndbox></object>"
        "<object><name>1</name><name>2</name><bndbox><xmin>9</xmin><ymin>2</ymin><xmax>12</xmax><ymax>6</ymax></bndbox>"
        "</object><object><name>3</name><scene>1</scene><nobndbox>1</nobndbox></object></annotation>")
    picture(folder / "images" / "36979.jpg")
    return folder


def visual_genome(folder):
    (folder / "region_descriptions.json").write_text(json.dumps([{"id": 1, "regions": [
        {"region_id": 4, "image_id": 1, "x": 2, "y": 3, "width": 4, "height": 6, "phrase": "a black bowl "}]}]))
    picture(folder / "VG_100K_2" / "1.jpg")
    return folder


def test_refcoco_m_has_masks_as_run_lengths_and_the_other_instances(refcoco_m):
    found = list(phrases("refcoco_m", refcoco_m))
    assert [phrase.text for phrase in found] == ["left bowl", "the dark one", "right bowl"]
    np.testing.assert_array_equal(found[0].named.pixels(*SIZE), rectangle(2, 3, 6, 9).astype(bool))
    np.testing.assert_array_equal(found[0].others[0].pixels(*SIZE), rectangle(10, 1, 14, 5).astype(bool))
    assert found[0].picture().size == SIZE[::-1]


def test_refcoco_reads_one_split_with_polygons_and_run_lengths(tmp_path):
    found = list(phrases("refcoco", refcoco(tmp_path), "testA"))
    assert [phrase.text for phrase in found] == ["bowl on the left", "black bowl"]
    np.testing.assert_array_equal(found[0].named.pixels(*SIZE), rectangle(2, 3, 6, 9).astype(bool))
    np.testing.assert_array_equal(found[0].others[0].pixels(*SIZE), rectangle(10, 1, 12, 3).astype(bool))
    assert found[0].named.boxes == ((2, 3, 6, 9),) and found[0].picture().mode == "RGB"


def test_googles_splits_beside_them_are_left_alone(tmp_path):
    folder = refcoco(tmp_path)
    (folder / "refs(google).p").write_bytes(pickle.dumps([], protocol=2))
    assert len(list(phrases("refcoco", folder, "testA"))) == 2


def test_a_pickle_that_asks_for_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)
    with pytest.raises(LarError, match="print"):
        list(phrases("refcoco", refcoco(tmp_path, [Evil()])))


def test_flickr30k_joins_the_boxes_of_a_chain_and_counts_pixels_from_one(tmp_path):
    found = list(phrases("flickr30k", flickr30k(tmp_path)))
    assert [phrase.text for phrase in found] == ["A group of friends", "cards", "Two men"]
    assert found[0].named.boxes == ((0, 1, 4, 6), (8, 1, 12, 6)) and found[1].named.boxes == ((8, 1, 12, 6),)
    expected = rectangle(0, 1, 4, 6) | rectangle(8, 1, 12, 6)
    np.testing.assert_array_equal(found[2].named.pixels(*SIZE), expected.astype(bool))


def test_visual_genome_has_corner_width_and_height(tmp_path):
    phrase, = phrases("visual_genome", visual_genome(tmp_path))
    assert phrase.text == "a black bowl" and phrase.named.boxes == ((2, 3, 6, 9),)
    assert phrase.picture().size == SIZE[::-1]


def test_a_box_beyond_the_picture_is_cut_off():
    assert Place(((-3, -1, 4, 40),)).pixels(*SIZE).sum() == 4 * SIZE[0]


@pytest.mark.parametrize("name", ["refcoco_m", "refcoco", "flickr30k", "visual_genome"])
def test_a_folder_without_the_files_is_named(tmp_path, name):
    with pytest.raises(LarError, match="does not hold"):
        list(phrases(name, tmp_path))


def test_an_unknown_set_and_a_missing_picture_are_named(tmp_path):
    with pytest.raises(LarError, match="refcoco"):
        list(phrases("refcocoo", tmp_path))
    folder = visual_genome(tmp_path)
    (folder / "VG_100K_2" / "1.jpg").unlink()
    with pytest.raises(LarError, match="1.jpg"):
        next(phrases("visual_genome", folder)).picture()


SQUARE = [2, 3, 6, 3, 6, 9, 2, 9]


@pytest.mark.parametrize("mask, reason", [
    ([], "mask is empty"), ([[]], "mask is empty"), ([[2, 3, 6, 9]], "mask is empty"),  # four numbers are no outline
    ([[2, 3, 6, 3, 6]], "mask is empty"), ([[50, 50, 60, 50, 60, 60]], "mask is empty"),
    ([[2, 3, float("nan"), 3, 6, 9]], "mask is damaged"), ({"counts": [121], "size": list(SIZE)}, "mask is damaged"),
    ({"counts": [192], "size": [16, 12]}, "another size than its picture"), ({"size": list(SIZE)}, "mask is damaged"),
    ({"counts": None, "size": list(SIZE)}, "mask is damaged"), ([None], "mask is damaged"),
    ({"counts": "zzzzz", "size": list(SIZE)}, "mask is damaged"), ({"counts": b"\x00\xff", "size": list(SIZE)}, "damaged"),
    ({"counts": "1", "size": list(SIZE)}, "mask is damaged"), ({"counts": "`", "size": list(SIZE)}, "mask is damaged")])
def test_a_mask_that_is_none_is_unusable_and_its_box_does_not_stand_in(mask, reason):
    with pytest.raises(Unusable, match=reason):
        Place(((2, 3, 6, 9),), mask).pixels(*SIZE)


def test_an_outline_of_too_few_numbers_beside_a_whole_one_adds_nothing():
    np.testing.assert_array_equal(Place(mask=[SQUARE, [0, 0, 16, 12]]).pixels(*SIZE), rectangle(2, 3, 6, 9).astype(bool))


@pytest.mark.parametrize("box", [(2, 3, 2, 9), (2, 3, 6, 3), (2.1, 3, 2.3, 9), (-9, 1, -3, 5), (1, -9, 5, -2),
                                 (20, 1, 24, 5), (1, 30, 5, 40), (6, 3, 2, 9)])
def test_a_box_without_a_pixel_of_the_picture_is_unusable(box):
    with pytest.raises(Unusable, match="no pixel of the picture"):
        Place((box,)).pixels(*SIZE)


def test_run_lengths_as_a_text_are_read_as_pycocotools_reads_healthy_ones():
    rng = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.9):
        pixels = rng.random((40, 300)) < share
        pixels[:, 60:200] = True  # runs of thousands
        text = coco_masks.encode(np.asfortranarray(pixels.astype(np.uint8)))
        np.testing.assert_array_equal(Place(mask=text).pixels(40, 300), pixels)
        with pytest.raises(Unusable, match="mask is damaged"):
            Place(mask=text | {"counts": text["counts"][:-3]}).pixels(40, 300)


@pytest.mark.parametrize("box", [["1", "2", "3", "4"], [1, 2, 3], [1, 2, None, 4], None])
def test_a_box_that_is_not_four_numbers_is_no_place(tmp_path, box):
    folder = visual_genome(tmp_path)
    (folder / "region_descriptions.json").write_text(json.dumps([{"id": 1, "regions": [
        {"phrase": "a cup", **dict(zip(("x", "y", "width", "height"), [*(box or []), *[None] * 4]))}]}]))
    with pytest.raises(Unusable, match="has no place"):
        next(phrases("visual_genome", folder)).named.pixels(*SIZE)


def test_of_two_boxes_the_one_outside_adds_nothing():
    np.testing.assert_array_equal(Place(((-9, 1, -3, 5), (2, 3, 6, 9))).pixels(*SIZE), rectangle(2, 3, 6, 9).astype(bool))


def test_a_box_of_nan_and_a_place_without_a_box_are_unusable():
    with pytest.raises(Unusable, match="not made of numbers"):
        Place(((float("nan"), 3, 6, 9),)).pixels(*SIZE)
    with pytest.raises(Unusable, match="has no place"):
        Place().pixels(*SIZE)


@pytest.mark.parametrize("content", [None, b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_missing_or_damaged_picture_is_unusable(tmp_path, content):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(Unusable, match="missing" if content is None else "damaged"):
        Phrase(tmp_path / "a.png", "a bowl", Place()).picture()


def test_a_reference_to_nothing_does_not_stop_the_others(tmp_path):
    refs = pickle.loads((refcoco(tmp_path) / "refs(unc).p").read_bytes())
    lost = [{**refs[0], "ann_id": 99}, {**refs[0], "image_id": 98}, refs[0]]
    found = list(phrases("refcoco", refcoco(tmp_path, lost), "testA"))
    assert len(found) == 6
    for phrase in found[:4]:
        with pytest.raises(Unusable):
            phrase.picture(), phrase.named.pixels(*SIZE)
    assert found[4].named.pixels(*SIZE).any()
