"""A question file laid out as LLaVA-Med's, its images, and judges that answer from a script."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lmms_eval.llm_judge import Request, Response, ServerInterface

from tests.tasks.vqa_rad_data import picture

DOMAINS = ("chest_xray", "mri", "ct_scan", "histology", "gross")  # the file's own order
#: type, flags set, question, the judge's reply.
QUESTIONS: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("conversation", ("chest_xray",), "What is white here?", "8 6\nThe second is vaguer."),
    ("conversation", ("mri",), "Which plane is it?", "10, 5"),
    ("detailed_description", ("histology", "gross"), "Describe the stain.", "4 5"),
    ("conversation", ("gross",), "Which organ is it?", "Both assistants did well: 8 and 7."),
    ("detailed_description", ("ct_scan",), "Describe the slice.", "9.0 4.5\n10 10"),
    ("conversation", (), "What is it not?", "2 3"),
)
UNPARSABLE = 3
#: Percent of the reference's score, as a reader of the replies would compute them.
RELATIVE: tuple[float | None, ...] = (75.0, 50.0, 125.0, None, 50.0, 150.0)


def entries() -> list[dict[str, Any]]:
    """Return the file's lines as objects."""
    return [
        {
            "question_id": number,
            "image": f"fig{number // 2}.png",
            "pair_id": f"fig{number // 2}",
            "text": f"{question}\n<image>",
            "gpt4_answer": f"Reference {number}.",
            "fig_caption": f"Caption {number}.",
            "in_text_mention": [
                {"tokens": f"See mention {number} .", "entities": [{"type": "figure", "start_tok": 1}]}
            ],
            "domain": {name: name in flags for name in DOMAINS},
            "type": kind,
            "fig_label": "Fig. 1",
        }
        for number, (kind, flags, question, _) in enumerate(QUESTIONS)
    ]


def write_data(folder: Path, lines: list[Any] | None = None) -> Path:
    """Write the question file and, beside it, the images; return the file."""
    (folder / "images").mkdir(parents=True)
    for number in range(3):
        picture(number).save(folder / "images" / f"fig{number}.png")
    file = folder / "questions.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in (entries() if lines is None else lines)]
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return file


def reply_to(prompt: str) -> str:
    """Return the scripted reply to the question that a prompt contains."""
    (reply,) = [reply for _, _, question, reply in QUESTIONS if question in prompt]
    return reply


class ScriptedJudge(ServerInterface):
    """A judge to register with lmms-eval's `ProviderFactory`; keeps what it was asked."""

    asked: list[str] = []  # noqa: RUF012 (shared on purpose: the task makes the judge)

    def is_available(self) -> bool:
        return True

    def evaluate(self, request: Request) -> Response:
        prompt = request.messages[-1]["content"]
        self.asked.append(prompt)
        return Response(content=reply_to(prompt), model_used="scripted-1")


class BrokenJudge(ServerInterface):
    """A judge whose requests fail."""

    def is_available(self) -> bool:
        return True

    def evaluate(self, request: Request) -> Response:
        raise TimeoutError("no answer from the judge")


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = {"role": "assistant", "content": reply_to(body["messages"][-1]["content"])}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": f"served-{body['model']}",
            "usage": usage,
        }
        reply["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@contextmanager
def openai_server() -> Iterator[str]:
    """Serve the scripted replies by OpenAI's protocol on this machine; yields the address for OPENAI_API_URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
