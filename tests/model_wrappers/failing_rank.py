"""One of several processes meets a document that it cannot answer: run by test_distributed.py under torchrun."""

from __future__ import annotations

import sys

from lmms_eval_stability.model_wrappers.models import LlavaBaseline
from tests.model_wrappers.documents import chat_requests, documents, give_documents


def main(folder: str) -> None:
    model = LlavaBaseline(pretrained=folder, device="cpu")
    docs = documents(4)
    if model.rank == 1:
        docs[2]["images"] = ["not an image"]
    give_documents(model, docs)
    try:
        model.generate_until(chat_requests(docs, {"max_new_tokens": 2}))
    except Exception as error:  # what lmms-eval does with every exception
        print(f"swallowed {error}", flush=True)
    model.accelerator.wait_for_everyone()
    print(f"rank {model.rank} reached the end", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
