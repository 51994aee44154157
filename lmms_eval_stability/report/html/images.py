"""Where the pictures of a page come from: a folder of files, or the data set of the lmms-eval task."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import OptionError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Longer side of a picture in the page, in pixels.
EDGE = 160
#: Most bytes that all pictures of a page take, as text.
MOST_BYTES = 24 * 2**20
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


class ImageSource(Protocol):
    """Pictures of documents.

    `name` says where they come from, for the page.
    """

    name: str

    def image(self, task: str, doc_id: int) -> Image | None:
        """The (first) picture of a document; None where there is none. Any exception counts as one that is broken."""
        ...


class FolderImages:
    """Files `TASK/DOC_ID.png` (or .jpg, .jpeg, .webp, .gif, .bmp) in a folder.

    Of a comparison of one task the files may also lie in the folder itself: `DOC_ID.png`.
    """

    def __init__(self, folder: Path, tasks: Iterable[str]) -> None:
        if not folder.is_dir():
            raise OptionError(f"--images {folder}: no such folder")
        self.name = f"folder {folder.name or folder}"
        self._folder = folder
        tasks = list(tasks)
        self._only_task = tasks[0] if len(tasks) == 1 else None

    def image(self, task: str, doc_id: int) -> Image | None:
        from PIL import Image

        homes = [self._folder / task] if _is_plain(task) else []
        homes += [self._folder] if task == self._only_task else []
        for home in homes:
            for ending in _ENDINGS:
                path = home / f"{doc_id}{ending}"
                if path.is_file():
                    with Image.open(path) as opened:
                        opened.load()
                        return opened.copy()
        return None


class TaskImages:
    """Pictures as the lmms-eval task gives them to a model, perturbed ones included.

    Imports lmms_eval when first asked. Raises OptionError for a task that it does not know, or whose data set cannot be
    loaded.
    """

    name = "data set of the task"

    def __init__(self) -> None:
        self._tasks: dict[str, Any] = {}

    def image(self, task: str, doc_id: int) -> Image | None:
        found = self._tasks.get(task)
        if found is None:
            found = self._tasks[task] = _load_task(task)
        docs = found.eval_docs
        if not 0 <= doc_id < len(docs):
            return None
        visuals = found.doc_to_visual(docs[doc_id]) or []
        return next((one for one in visuals if hasattr(one, "thumbnail")), None)


def _load_task(name: str) -> Any:
    import lmms_eval.models  # noqa: F401 - loads plug-ins, whose tasks are then known
    from lmms_eval.tasks import TaskManager, get_task_dict
    from loguru import logger

    remedy = "give a folder with files named TASK/DOC_ID.png instead"
    logger.disable("lmms_eval")  # a line for each of hundreds of YAMLs
    try:
        manager = TaskManager("ERROR")
        if name not in manager.all_tasks:
            raise OptionError(f"--images dataset: lmms-eval knows no task {name}; {remedy}")
        return get_task_dict([name], manager, task_type="chat")[name]
    except OptionError:
        raise
    except Exception as error:  # whatever a task's own code and its data set raise
        reason = error.__cause__ or error
        raise OptionError(
            f"--images dataset: the data of task {name} cannot be loaded: {type(reason).__name__}: {reason}; {remedy}"
        ) from error
    finally:
        logger.enable("lmms_eval")


def image_source(value: str, tasks: Iterable[str]) -> ImageSource:
    """What `--images VALUE` means: "dataset", or a folder (which wins where one has that name).

    Raises OptionError when it is neither.
    """
    if Path(value).is_dir():
        return FolderImages(Path(value), tasks)
    if value == "dataset":
        return TaskImages()
    raise OptionError(f'--images {value}: neither a folder nor "dataset"')


@dataclass
class Thumbnails:
    """Small pictures as data URLs, each once.

    Attributes:
        urls: the pictures.
        place: document -> its picture's place in `urls`.
        missing, broken, left_out: documents without a picture, whose picture cannot be read, and those for which
            there was no room.
    """

    urls: list[str] = field(default_factory=list)
    place: dict[tuple[str, int], int] = field(default_factory=dict)
    missing: int = 0
    broken: int = 0
    left_out: int = 0


def thumbnails(source: ImageSource, documents: Iterable[tuple[str, int]], most_bytes: int = MOST_BYTES) -> Thumbnails:
    """Pictures of the documents, in their order until `most_bytes` are used up.

    Args:
        source: gives the pictures; its OptionError passes through.
        documents: (task, doc_id), the most interesting ones first.
        most_bytes: limit of the text of all pictures.
    """
    found, known, used = Thumbnails(), {}, 0
    documents = iter(documents)
    for key in documents:
        try:
            image = source.image(*key)
            url = None if image is None else data_url(image)
        except OptionError:
            raise
        except Exception:  # a damaged file, an absurd size, a task's own code: one picture less, and counted
            found.broken += 1
            continue
        if url is None:
            found.missing += 1
            continue
        if url not in known:
            if used + len(url) > most_bytes:
                found.left_out = 1 + _count(documents)
                break
            used += len(url)
            known[url] = len(found.urls)
            found.urls.append(url)
        found.place[key] = known[url]
    return found


def data_url(image: Image, edge: int = EDGE) -> str:
    """The picture as a JPEG of at most `edge` pixels a side; transparent parts become white."""
    from PIL import Image, ImageOps

    small = _eight_bit(ImageOps.exif_transpose(image))
    small.thumbnail((edge, edge))
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small)
    stream = io.BytesIO()
    small.convert("RGB").save(stream, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _eight_bit(image: Image) -> Image:
    """The picture as RGB, or RGBA if parts may be transparent; 16 bits of grey are scaled, which `convert` cuts off."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(float) / 257).clip(0, 255).astype(np.uint8))
    return image.convert("RGBA" if image.mode in ("RGBA", "LA", "P", "PA") else "RGB")


def _is_plain(task: str) -> bool:
    return Path(task).name == task


def _count(rest: Iterator[Any]) -> int:
    return sum(1 for _ in rest)
