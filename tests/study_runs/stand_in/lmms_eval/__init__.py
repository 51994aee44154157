"""Stands in for lmms-eval in the processes of a study (put its parent folder on PYTHONPATH)."""
