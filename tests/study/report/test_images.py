from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from lmms_eval_stability.errors import OptionError
from lmms_eval_stability.report.html import FolderImages, TaskImages, html_model, image_source
from lmms_eval_stability.report.html.images import EDGE, data_url, thumbnails

from .pages import small_study


def opened(url: str) -> Image.Image:
    head, _, content = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


class OneColour:
    """A picture of its own for every document but those that have none, or a broken one."""

    name = "test"

    def __init__(self, missing: set[int] = frozenset(), broken: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.missing, self.broken = missing, broken

    def image(self, task: str, doc_id: int) -> Image.Image | None:
        if doc_id in self.broken:
            raise OSError("cut off")
        return None if doc_id in self.missing else Image.new("RGB", (32, 32), (doc_id * 20, 0, 0))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16"])
def test_pictures_of_every_kind_become_small_jpegs(mode: str) -> None:
    small = opened(data_url(Image.new(mode, (1000, 400))))
    assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (EDGE, 64))


def test_small_pictures_keep_their_size_and_transparent_ones_become_white() -> None:
    small = opened(data_url(Image.new("RGBA", (20, 10), (255, 0, 0, 0))))
    assert small.size == (20, 10)
    assert small.getpixel((5, 5)) == (255, 255, 255)


def test_sixteen_bits_of_grey_are_scaled() -> None:
    grey = Image.new("I;16", (20, 10), 0x8000)
    red, *_ = opened(data_url(grey)).getpixel((5, 5))
    assert 126 <= red <= 129


def test_pictures_stand_as_the_camera_was_held() -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(stream, "JPEG", exif=exif)
    assert opened(data_url(Image.open(stream))).size == (20, 40)


class TestThumbnails:
    documents = (("gqa", 1), ("gqa", 2), ("gqa", 3), ("gqa", 4))

    def test_counts_what_is_not_there(self) -> None:
        found = thumbnails(OneColour(missing={2}, broken={3}), self.documents)
        assert (found.missing, found.broken, found.left_out) == (1, 1, 0)
        assert list(found.place) == [("gqa", 1), ("gqa", 4)]

    def test_equal_pictures_are_held_once(self) -> None:
        found = thumbnails(OneColour(), (("gqa", 1), ("other", 1)))
        assert (len(found.urls), found.place) == (1, {("gqa", 1): 0, ("other", 1): 0})

    def test_there_is_a_limit_for_all_together(self) -> None:
        whole = thumbnails(OneColour(), self.documents)
        sizes = [len(url) for url in whole.urls]
        found = thumbnails(OneColour(), self.documents, most_bytes=sizes[0] + sizes[1])
        assert (list(found.place), found.left_out) == ([("gqa", 1), ("gqa", 2)], 2)

    def test_an_error_of_the_source_as_a_whole_is_no_broken_picture(self) -> None:
        class Unusable(OneColour):
            def image(self, task: str, doc_id: int) -> Image.Image | None:
                raise OptionError("no such task")

        with pytest.raises(OptionError, match="no such task"):
            thumbnails(Unusable(), self.documents)


class TestFolder:
    def picture(self, path: Path, colour: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(path)

    def test_by_task_and_document(self, tmp_path: Path) -> None:
        self.picture(tmp_path / "gqa" / "7.png", "red")
        self.picture(tmp_path / "other" / "7.jpg", "blue")
        source = image_source(str(tmp_path), ["gqa", "other"])
        red, blue = source.image("gqa", 7), source.image("other", 7)
        assert red is not None
        assert blue is not None
        assert red.getpixel((0, 0)) == (255, 0, 0)
        assert blue.getpixel((0, 0))[2] > 200
        assert source.image("gqa", 8) is None

    def test_without_a_task_only_if_there_is_one(self, tmp_path: Path) -> None:
        self.picture(tmp_path / "7.png", "red")
        assert FolderImages(tmp_path, ["gqa"]).image("gqa", 7) is not None
        assert FolderImages(tmp_path, ["gqa", "other"]).image("gqa", 7) is None

    def test_a_task_does_not_lead_out_of_the_folder(self, tmp_path: Path) -> None:
        self.picture(tmp_path / "secret" / "7.png", "red")
        (tmp_path / "images").mkdir()
        assert FolderImages(tmp_path / "images", ["../secret", "b"]).image("../secret", 7) is None

    @pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
    def test_damaged_files_are_counted(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "7.png").write_bytes(content)
        assert thumbnails(FolderImages(tmp_path, ["gqa"]), [("gqa", 7)]).broken == 1

    def test_neither_folder_nor_data_set(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match=r'neither a folder nor "dataset"'):
            image_source(str(tmp_path / "missing"), ["gqa"])
        with pytest.raises(OptionError, match="no such folder"):
            FolderImages(tmp_path / "missing", ["gqa"])


def test_the_page_says_where_its_pictures_come_from(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    model = html_model(study.comparison, study.pairs, images=OneColour(missing={2}, broken={3, 4}))
    assert model.pictures == "Images of 3 of 6 samples from the test; 1 have none there; 2 cannot be read."
    assert len(model.browser["images"]) == 3
    assert model.browser["docs"]["image"] == [0, 1, -1, -1, -1, 2]
    full = html_model(study.comparison, study.pairs, images=OneColour(), most_image_bytes=0)
    assert full.pictures.endswith("6 are left out for the page's size.")


def test_pictures_of_the_task_itself() -> None:
    source = image_source("dataset", ["shapes_vqa"])
    assert isinstance(source, TaskImages)
    picture = source.image("shapes_vqa", 1)
    assert picture is not None
    assert max(picture.size) > 50
    assert source.image("shapes_vqa", 10**9) is None
    assert source.image("shapes_vqa", -1) is None
    with pytest.raises(OptionError, match="lmms-eval knows no task no_such_task; give a folder"):
        source.image("no_such_task", 0)
