"""Properties of the common feature extractor (sheets of arXiv 2304.10677 and 1403.6382), and of its cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from offshelf.backbones.load import load_backbone
from offshelf.backbones.preprocess import to_input
from offshelf.data.images import decode_image
from offshelf.data.sources import open_dataset
from offshelf.engine.cache import cache_root
from offshelf.errors import DataError, UsageError
from offshelf.transfer.deep_features import DeepFeatures
from tests.conftest import draw, write_folder

RESNET, EFFICIENT = "test_resnet.random", "test_efficientnet.random"


def pictures(n: int = 6, side: int = 64) -> np.ndarray:
    return np.stack([draw(i % 3, i, side) for i in range(n)])


def test_width_is_tiles_times_measured_widths() -> None:
    features = DeepFeatures([RESNET, EFFICIENT], grid=(2, 2), input_size=32).fit()
    widths = [card.width for card in features.cards_]
    assert widths == [96, 256]
    table = features.transform(pictures(3))
    assert table.shape == (3, 4 * (96 + 256)) == (3, features.n_features_out_)
    assert table.dtype == np.float32


def test_logits_of_eight_thousand_way_networks_are_32000_wide() -> None:
    names = [f"test_resnet.random_{seed}" for seed in range(8)]
    assert DeepFeatures(names, grid=(2, 2), readout="logits", input_size=32).fit().n_features_out_ == 32_000


def test_features_equal_those_of_the_network_itself() -> None:
    batch = pictures(5)
    found = DeepFeatures(RESNET, exact=True, input_size=64).transform(batch)
    model = load_backbone(RESNET)
    inputs = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in batch]).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.card.mean, model.card.std))
    with torch.inference_mode():
        expected = model((inputs - mean) / std).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_section_reaches_only_its_own_block() -> None:
    before = pictures(1, side=96)
    after = before.copy()
    after[0, :48, 48:] = 255 - after[0, :48, 48:]  # the section of the first row, second column
    features = DeepFeatures([RESNET, EFFICIENT], grid=(2, 2), input_size=48, exact=True).fit()
    a, b = features.transform(before)[0], features.transform(after)[0]
    for name, tile, columns in features.blocks():
        if tile == (0, 1):
            assert not np.array_equal(a[columns], b[columns]), name
        else:
            np.testing.assert_array_equal(a[columns], b[columns])


def test_order_of_backbones_permutes_blocks_and_nothing_else() -> None:
    batch = pictures(3)
    one, two = DeepFeatures([RESNET, EFFICIENT], input_size=32), DeepFeatures([EFFICIENT, RESNET], input_size=32)
    a, b = one.fit_transform(batch), two.fit_transform(batch)
    np.testing.assert_array_equal(a, np.hstack([b[:, 256:], b[:, :256]]))


def test_features_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    batch = pictures(8)
    together = DeepFeatures(RESNET, exact=True, input_size=64, batch_size=64, cache_folder=tmp_path / "a").transform(
        batch
    )
    alone = DeepFeatures(RESNET, exact=True, input_size=64, batch_size=1, cache_folder=tmp_path / "b").transform(batch)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_names_say_backbone_tile_and_channel() -> None:
    names = DeepFeatures([RESNET, EFFICIENT], grid=(1, 2), input_size=32).get_feature_names_out()
    assert names[0] == "test_resnet.random[0,0]:0"
    assert names[96] == "test_resnet.random[0,1]:0"
    assert names[-1] == "test_efficientnet.random[0,1]:255"
    assert len(set(names)) == len(names) == 2 * (96 + 256)


def test_copies_are_averaged_or_stand_side_by_side() -> None:
    batch = pictures(2)
    mean = DeepFeatures(RESNET, copies=2, input_size=32).fit_transform(batch)
    apart = DeepFeatures(RESNET, copies=2, copy_pooling="concatenate", input_size=32).fit_transform(batch)
    single = DeepFeatures(RESNET, input_size=32, exact=True).fit_transform(batch)
    mirrored = DeepFeatures(RESNET, input_size=32, exact=True).fit_transform(batch[:, :, ::-1])
    assert apart.shape == (2, 192)
    np.testing.assert_allclose(mean, apart.reshape(2, 2, 96).mean(1), rtol=1e-6)
    exact = DeepFeatures(RESNET, copies=2, copy_pooling="concatenate", input_size=32, exact=True).fit_transform(batch)
    np.testing.assert_allclose(exact, np.hstack([single, mirrored]), rtol=1e-4, atol=1e-5)


def test_the_second_run_computes_nothing_and_gives_the_same_bytes(folder: Path) -> None:
    data = open_dataset(folder)
    first = DeepFeatures([RESNET], grid=(2, 2), input_size=32).extract(data)
    second = DeepFeatures([RESNET], grid=(2, 2), input_size=32).extract(data)
    assert (first.computed, second.computed) == (36, 0)
    assert first.features.tobytes() == second.features.tobytes()
    changed = folder / "disc" / "000.jpg"
    changed.write_bytes((folder / "disc" / "002.jpg").read_bytes()[:-2] + b"\xff\xd9")
    assert DeepFeatures([RESNET], grid=(2, 2), input_size=32).extract(open_dataset(folder)).computed <= 1


def test_one_more_backbone_computes_only_its_own(folder: Path) -> None:
    data = open_dataset(folder)
    DeepFeatures([RESNET], input_size=32).extract(data)
    both = DeepFeatures([RESNET, EFFICIENT], input_size=32).extract(data)
    alone = DeepFeatures([EFFICIENT], input_size=32).extract(data)
    assert alone.computed == 0
    np.testing.assert_array_equal(both.features[:, :, 96:], alone.features)


def test_equal_pictures_are_computed_once() -> None:
    batch = np.concatenate([pictures(2)] * 3)
    found = DeepFeatures(RESNET, input_size=32).extract(batch)
    assert found.computed == 2
    np.testing.assert_array_equal(found.features[:2], found.features[4:])


def test_unreadable_pictures_are_reported_row_by_row(folder: Path) -> None:
    (folder / "disc" / "000.jpg").write_bytes(b"")
    (folder / "disc" / "003.png").write_bytes((folder / "disc" / "003.png").read_bytes()[:100])
    found = DeepFeatures(RESNET, input_size=32).extract(open_dataset(folder))
    assert sorted(Path(error.path).name for error in found.errors.values()) == ["000.jpg", "003.png"]
    assert np.isnan(found.features[list(found.errors)]).all()
    assert np.isfinite(np.delete(found.features, list(found.errors), axis=0)).all()
    with pytest.raises(DataError, match="2 of 36 pictures cannot be read"):
        DeepFeatures(RESNET, input_size=32).transform(open_dataset(folder))


def test_a_file_that_changes_under_the_reader_is_reported_not_cached(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import offshelf.transfer.extraction as extraction

    seen: dict[str, int] = {}

    def read(image: dict[str, object]) -> bytes:
        name = str(image["path"])
        seen[name] = seen.get(name, 0) + 1
        data = Path(name).read_bytes()
        return data + b"\0" if name.endswith("disc/000.jpg") and seen[name] == 2 else data

    monkeypatch.setattr(extraction, "read_bytes", read)
    found = DeepFeatures(RESNET, input_size=32).extract(open_dataset(folder))
    assert [error.reason for error in found.errors.values()] == [
        "the file changed while it was being read; run again when nothing writes to it"
    ]
    assert found.computed == 35


def test_results_larger_than_memory_are_mapped_and_leave_no_file(folder: Path) -> None:
    data = open_dataset(folder)
    in_memory = DeepFeatures(RESNET, input_size=32).extract(data).features
    mapped = DeepFeatures(RESNET, input_size=32, memory_limit=1000).extract(data).features
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, in_memory)
    assert not list(cache_root().glob("*.mmap"))


def test_it_is_a_scikit_learn_transformer(folder: Path) -> None:
    data = open_dataset(folder)
    from offshelf.data.samples import as_samples

    model = make_pipeline(DeepFeatures(RESNET, input_size=32), LogisticRegression(max_iter=500))
    copy = clone(model)
    assert copy.get_params()["deepfeatures__backbones"] == RESNET
    scores = cross_val_score(copy, as_samples(data), data["label"][:], cv=3)
    assert scores.mean() > 0.8  # stripes and discs are easy, also for random weights


def test_wrong_settings_are_named() -> None:
    for settings, message in [
        ({"readout": "poled"}, "readout='poled'"),
        ({"copies": 3}, "copies=3"),
        ({"copy_pooling": "max"}, "copy_pooling='max'"),
        ({"backbones": []}, "backbones is empty"),
    ]:
        with pytest.raises(UsageError, match=message):
            DeepFeatures(**{"backbones": RESNET, **settings}).fit()


def test_grey_pictures_are_decoded_once_and_repeated(tmp_path: Path) -> None:
    from PIL import Image

    grey = draw(0, 0)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(tmp_path / "colour.png")
    assert decode_image((tmp_path / "grey.png").read_bytes()).shape == (1, 48, 48)
    table = DeepFeatures(RESNET, input_size=48, exact=True).transform([tmp_path / "grey.png", tmp_path / "colour.png"])
    np.testing.assert_allclose(table[0], table[1], atol=1e-5)
    card = load_backbone(RESNET).card
    assert to_input(torch.zeros(1, 8, 8, dtype=torch.uint8), card).shape[0] == 3


CHILD = """
import sys
from offshelf.data.sources import open_dataset
from offshelf.data.samples import as_samples
from offshelf.transfer.deep_features import DeepFeatures
from offshelf.transfer.extraction import extract
features = DeepFeatures({names!r}, input_size=32, exact=True)
view, networks = features._networks()
extract(as_samples(open_dataset(sys.argv[1])), networks, view, window=16, advance=lambda n: print(n, flush=True))
"""


@pytest.mark.slow
def test_a_killed_extraction_goes_on_where_it_stopped(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "many", per_class=400)
    code = CHILD.format(names=[RESNET])
    child = subprocess.Popen([sys.executable, "-c", code, str(data)], stdout=subprocess.PIPE, env=dict(os.environ))
    assert child.stdout is not None
    done = 0
    while done < 60:  # the fourth window has begun, so three are finished
        done += int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    child.wait()
    rest = DeepFeatures([RESNET], input_size=32, exact=True).extract(open_dataset(data))
    assert 0 < rest.computed <= 1200 - 48  # at least the three finished windows of sixteen were not computed again
    fresh = DeepFeatures([RESNET], input_size=32, exact=True, cache_folder=tmp_path / "fresh").extract(
        open_dataset(data)
    )
    np.testing.assert_allclose(rest.features, fresh.features, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_fill_the_same_cache_at_once(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "many", per_class=30)
    code = CHILD.format(names=[RESNET])
    started = [subprocess.Popen([sys.executable, "-c", code, str(data)], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [child.wait(timeout=120) for child in started] == [0, 0]
    after = DeepFeatures([RESNET], input_size=32, exact=True).extract(open_dataset(data))
    assert after.computed == 0
    assert np.isfinite(after.features).all()


def test_time_is_spent_on_the_cache_only_once() -> None:
    """A ratio within one run: the cached pass over the same pictures is far faster than the first."""
    batch = pictures(24, side=128)
    features = DeepFeatures([RESNET, EFFICIENT], grid=(2, 2)).fit()
    clock = time.perf_counter()
    features.extract(batch)
    first = time.perf_counter() - clock
    clock = time.perf_counter()
    features.extract(batch)
    assert time.perf_counter() - clock < first / 3
