"""`python -m tests.integration.driver COMMANDS.json`: lmms-eval's command line, several times in one process.

The file holds a list of argument lists, each of which a user would type after `lmms-eval`. lmms-eval reads its 1,985
task YAMLs anew for each; here it reads them once. Nothing else of it is changed: a model is registered beside its own,
and MMBench's language model is a local server.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Judge(BaseHTTPRequestHandler):
    """What OpenAI's server is to MMBench: finds that an answer is none of the options, "E"."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"choices": [{"message": {"content": "E"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


def start_judge() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["OPENAI_API_URL"] = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    os.environ["OPENAI_API_KEY"] = "stand-in"
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"


def main(commands: Path) -> None:
    start_judge()
    from lmms_eval.__main__ import cli_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.models.registry_v2 import ModelManifest
    from lmms_eval.tasks import TaskManager

    MODEL_REGISTRY_V2.register_manifest(
        ModelManifest("scripted", chat_class_path="tests.integration.scripted.Scripted")
    )
    read_folder = TaskManager._get_task_and_group
    index = functools.cache(lambda folder: read_folder(manager_of_index, folder))
    manager_of_index = TaskManager(include_defaults=False)
    TaskManager._get_task_and_group = lambda _, folder: index(folder)
    for number, arguments in enumerate(json.loads(commands.read_text(encoding="utf-8"))):
        sys.argv = ["lmms-eval", *arguments]
        print(f"=== lmms-eval {' '.join(arguments)}", flush=True)
        cli_evaluate()
        if number == 0:  # what it has imported and read stays; looking at it all again is a fifth of a run's time
            gc.freeze()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
