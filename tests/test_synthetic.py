"""The synthetic data set: the same bytes every time, whole or not at all, and alive."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.vspw_files import write_dataset
from vss_models.data import (
    SYNTHETIC_CLASSES,
    ClipTestDataset,
    ClipTrainDataset,
    make_synthetic_dataset,
    read_classes,
    read_disturbances,
    synthetic,
)
from vss_models.data.synthetic_scene import noise
from vss_models.data.synthetic_video import (
    DISTURBANCES,
    UNDISTURBED,
    SyntheticVideo,
    draw_disturbance,
    film,
)

SMALL = {"num_train": 2, "num_val": 1, "frames": 4, "size": (48, 64)}


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_synthetic_dataset(tmp_path_factory.mktemp("synthetic") / "set", **SMALL)


def test_layout(small):
    videos = ["train_0000", "train_0001", "val_0000"]
    frames = {
        f"data/{video}/{kind}/{number:08d}.{suffix}"
        for video in videos
        for kind, suffix in (("origin", "jpg"), ("mask", "png"))
        for number in range(4)
    }
    lists = {"train.txt", "val.txt", "classes.txt", "disturbances.csv", ".vss-synthetic"}
    assert set(contents(small)) == frames | lists
    assert (small / "train.txt").read_text().split() == videos[:2]
    assert (small / "val.txt").read_text().split() == videos[2:]
    assert read_classes(small / "classes.txt") == SYNTHETIC_CLASSES


def test_read_as_any_other_data_set(small):
    train = ClipTrainDataset(small, offsets=(-3, -2, -1))
    assert (len(train), train.classes) == (2, SYNTHETIC_CLASSES)
    assert train[0]["clip"].shape == (4, 3, 480, 480)
    val = ClipTestDataset(small, offsets=(-3, -2, -1))
    assert len(val) == 4
    assert val[3]["labels"].shape == (48, 64)


def test_same_seed_same_bytes(small, tmp_path):
    again = make_synthetic_dataset(tmp_path / "again", **SMALL)
    assert contents(again) == contents(small)
    other = contents(make_synthetic_dataset(tmp_path / "other", **SMALL, seed=1))
    for name, data in contents(small).items():
        if name.endswith(".jpg"):
            assert other[name] != data


def test_more_of_it_leaves_the_rest_as_it_is(small, tmp_path):
    settings = {**SMALL, "num_train": 3, "frames": 6}
    larger = contents(make_synthetic_dataset(tmp_path / "larger", **settings))
    for name, data in contents(small).items():
        if name not in ("train.txt", "disturbances.csv"):
            assert larger[name] == data
    kept = read_disturbances(tmp_path / "larger").items()
    assert read_disturbances(small).items() <= kept


def test_videos_differ():
    first, second = (SyntheticVideo((48, 64), (0, 0, number)).frame(0)[0] for number in (0, 1))
    assert (first != second).mean() > 0.5


def test_frames_can_be_painted_in_any_order():
    forwards, backwards = (SyntheticVideo((48, 64), (3, 0, 1)) for _ in range(2))
    painted = [forwards.frame(number) for number in range(5)]
    for number in reversed(range(5)):
        image, labels = backwards.frame(number)
        assert np.array_equal(image, painted[number][0])
        assert np.array_equal(labels, painted[number][1])


@pytest.fixture(scope="module")
def films():
    """(videos, frames, height, width) labels of some longer videos."""
    videos = [SyntheticVideo((96, 160), (0, 0, number)) for number in range(6)]
    return np.stack([np.stack([video.frame(n)[1] for n in range(0, 40, 2)]) for video in videos])


def test_every_class_is_there_and_void_is_rare(films):
    fractions = np.bincount(films.ravel(), minlength=10) / films.size
    assert len(fractions) == 1 + len(SYNTHETIC_CLASSES)
    assert (fractions[1:] > 0.005).all()
    assert fractions[1:].max() < 0.6
    assert 0 < fractions[0] < 0.02


def test_labels_move_but_hold_together(films):
    changed = (films[:, 1:] != films[:, :-1]).mean(axis=(1, 2, 3))
    assert (changed > 0.005).all()
    assert (changed < 0.25).all()


def test_objects_enter_and_leave(films):
    for label in (7, 8, 9):
        pixels = (films == label).sum(axis=(2, 3))
        touches_side = (films[..., [0, -1]] == label).any(axis=(2, 3))
        assert touches_side.any()
        assert not touches_side.all()
        assert (pixels.max(axis=1) > 1.3 * pixels.min(axis=1)).any()


def test_some_frames_are_bad_alone():
    # Against the median of their neighbours, bad frames stand out and good ones do not.
    video = SyntheticVideo((96, 160), (0, 0, 2))
    frames = np.stack([video.frame(number)[0] for number in range(40)]).astype(np.float32)
    off = [
        np.abs(frames[n] - np.median(frames[n - 3 : n + 4], axis=0)).mean() for n in range(3, 37)
    ]
    assert 0.15 < np.mean(np.array(off) > 2 * np.quantile(off, 0.3)) < 0.6


def test_disturbances_come_as_often_as_they_should():
    rng = np.random.default_rng(0)
    drawn = [draw_disturbance(rng) for _ in range(20000)]
    expected = {**DISTURBANCES, UNDISTURBED: 1 - sum(DISTURBANCES.values())}
    assert set(drawn) == set(expected)
    for name, probability in expected.items():
        assert drawn.count(name) / len(drawn) == pytest.approx(probability, abs=0.01), name


def test_the_file_says_what_was_done_to_a_frame(small):
    listed = read_disturbances(small)
    assert len(listed) == 12
    for (video, frame), disturbance in listed.items():
        number = int(video[-4:])
        seed = (0, int(video.startswith("val")), number)
        synthetic_video = SyntheticVideo(SMALL["size"], seed)
        assert synthetic_video.disturbance(int(frame)) == disturbance


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_every_disturbance_changes_the_picture_in_its_way(disturbance):
    # Stripes, so that blur shows, between black and white, so that exposure and glare do.
    colour = np.full((96, 160, 3), 120.0)
    colour[:, ::8] = 60.0
    plain = film(colour, UNDISTURBED, np.random.default_rng(0)).astype(float)
    picture = film(colour, disturbance, np.random.default_rng(0)).astype(float)
    rows = np.abs(picture - plain).mean(axis=(1, 2))
    if disturbance == "noise burst":
        assert picture[:, 1::8].std() > 4 * plain[:, 1::8].std()
    elif disturbance == "motion blur":
        assert np.ptp(picture.mean(axis=(0, 2))) < 0.5 * np.ptp(plain.mean(axis=(0, 2)))
    elif disturbance == "wrong exposure":
        assert not 0.6 < picture.mean() / plain.mean() < 1.4
    elif disturbance == "glare":
        assert picture.mean() > plain.mean()
        assert rows.max() > 5 * rows.min()
    else:
        lost = picture.mean(axis=2) < 20
        assert plain.mean(axis=2).min() > 20
        assert 0.1 < lost.mean() < 0.4


def test_noise_tiles():
    field = noise(np.random.default_rng(0), 64, 96, 16)
    steps = np.abs(np.diff(field, axis=0)).max(), np.abs(np.diff(field, axis=1)).max()
    assert np.abs(field[0] - field[-1]).max() <= 1.5 * steps[0]
    assert np.abs(field[:, 0] - field[:, -1]).max() <= 1.5 * steps[1]


@pytest.mark.parametrize("size", [(32, 32), (33, 71), (120, 40)])
def test_any_size(size):
    image, labels = SyntheticVideo(size, (0, 0, 0)).frame(0)
    assert image.shape == (*size, 3)
    assert labels.shape == size
    assert image.dtype == labels.dtype == np.uint8


def test_existing_folders_are_kept_unless_told(small, tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    make_synthetic_dataset(root, **SMALL)
    before = contents(root)
    with pytest.raises(FileExistsError, match=f"{root} is not empty"):
        make_synthetic_dataset(root, **SMALL, seed=1)
    assert contents(root) == before
    make_synthetic_dataset(root, **SMALL, seed=1, overwrite=True)
    assert contents(root) != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_overwrite_replaces_nothing_but_a_synthetic_data_set(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(FileExistsError, match="is not a synthetic data set"):
        make_synthetic_dataset(tmp_path, **SMALL, overwrite=True)
    with pytest.raises(FileExistsError, match="not a folder"):
        make_synthetic_dataset(tmp_path / "thesis.txt", **SMALL, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"


def test_overwrite_keeps_a_real_data_set(tmp_path):
    root = write_dataset(tmp_path / "vspw")
    before = contents(root)
    with pytest.raises(FileExistsError, match="is not a synthetic data set"):
        make_synthetic_dataset(root, **SMALL, overwrite=True)
    assert contents(root) == before


@pytest.mark.parametrize("name", ["predictions.csv", "data/my_video/origin/0.jpg"])
def test_overwrite_keeps_foreign_files(tmp_path, name):
    root = make_synthetic_dataset(tmp_path / "set", **SMALL)
    foreign = root / name
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_text("mine")
    with pytest.raises(FileExistsError, match="does not belong to the synthetic data set"):
        make_synthetic_dataset(root, **SMALL, overwrite=True)
    assert foreign.read_text() == "mine"


def test_a_full_disk_is_named_with_the_video(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(synthetic, "_write_video", full)
    with pytest.raises(OSError, match="No space left") as caught:
        make_synthetic_dataset(tmp_path / "set", **SMALL)
    assert caught.value.filename == str(tmp_path / "set" / "data" / "train_0000")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_things_as_they_were(tmp_path, monkeypatch, existing):
    root = tmp_path / "set"
    if existing:
        make_synthetic_dataset(root, **SMALL)
    before = contents(tmp_path)

    def fail(path: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(synthetic, "_write_classes", fail)
    with pytest.raises(OSError, match="disk full"):
        make_synthetic_dataset(root, **SMALL, seed=1, overwrite=True)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["set"] if existing else [])


def test_a_failed_swap_brings_the_old_data_set_back(tmp_path, monkeypatch):
    root = make_synthetic_dataset(tmp_path / "set", **SMALL)
    before = contents(tmp_path)
    rename = Path.rename

    def fail_for_the_new_one(path: Path, target: Path) -> Path:
        if ".partial" in path.name:
            raise OSError("disk full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="disk full"):
        make_synthetic_dataset(root, **SMALL, seed=1, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "settings", [{"num_train": 0}, {"num_val": 0}, {"frames": 0}, {"size": (31, 64)}, {"seed": -1}]
)
def test_wrong_settings(tmp_path, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        make_synthetic_dataset(tmp_path / "set", **{**SMALL, **settings})
    assert not list(tmp_path.iterdir())


def test_masks_show_their_classes_in_colour(small):
    mask = Image.open(small / "data" / "val_0000" / "mask" / "00000000.png")
    values, colours = np.asarray(mask), np.asarray(mask.convert("RGB"))
    for value in np.unique(values[values > 0]):
        expected = SYNTHETIC_CLASSES.colours[value - 1]
        assert (colours[values == value] == expected).all()
