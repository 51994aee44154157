"""Settings that hold for every test: no network, one thread per process, Ctrl-C, warnings of third parties quiet."""

from __future__ import annotations

import os
import signal

# A shell ignores Ctrl-C for what it starts in the background, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Set before transformers and datasets are imported: a test that would need the hub has to fail, not to wait.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
