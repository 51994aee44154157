"""Digests of what a document shows the model."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from lmms_eval_stability.model_wrappers import measurements
from lmms_eval_stability.model_wrappers.families import Prompt
from lmms_eval_stability.model_wrappers.measurements import ImageDigests, fingerprints
from tests.model_wrappers.documents import draw


def plain(image: Image.Image) -> str:
    rgb = image.convert("RGB")
    size = rgb.width.to_bytes(4, "big") + rgb.height.to_bytes(4, "big")
    return hashlib.blake2b(size + rgb.tobytes(), digest_size=16).hexdigest()


def test_images_seen_before_have_the_digest_of_a_fresh_look() -> None:
    """Equal pixels in another object, mode or size; more images than are kept, in an order that comes back to all."""
    images = [draw(seed, size) for seed in range(4) for size in ((20, 10), (10, 20))]
    images += [images[0].copy(), images[1].convert("L"), images[2].convert("RGBA"), images[3].convert("P")]
    digests = ImageDigests(count=3)
    for order in (images, images[::-1], images[::3] * 2):
        assert [digests(image) for image in order] == [plain(image) for image in order]


def test_an_image_that_comes_again_is_not_hashed_again(monkeypatch) -> None:
    hashed: list[bytes] = []
    original = measurements._digest
    monkeypatch.setattr(measurements, "_digest", lambda content: hashed.append(content) or original(content))
    digests = ImageDigests()
    for _ in range(3):
        fingerprints(Prompt("a", (draw(1, (20, 10)),)), digests)
    assert len(hashed) == 1 + 3  # the image once, every prompt


def test_threads_may_share_what_was_seen() -> None:
    images = [draw(seed % 6, (64, 48)) for seed in range(240)]
    digests = ImageDigests(count=2)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(digests, images)) == [plain(image) for image in images]


def test_order_of_images_and_where_a_text_ends_count() -> None:
    one, two = draw(1, (20, 10)), draw(2, (20, 10))
    prompts = [Prompt("a", (one, two)), Prompt("a", (two, one)), Prompt("a", (one,)), Prompt("ab", (one,))]
    prints = [fingerprints(prompt) for prompt in prompts]
    assert len({found.input for found in prints}) == 4
    assert len({prints[0].image, prints[1].image, prints[2].image}) == 3
    assert prints[0].images == prints[1].images[::-1] == (plain(one), plain(two))
    assert prints[2].image == prints[3].image == plain(one)
