"""Tests of making checkpoints; they need llm-compressor, so they run in an environment of their own."""
