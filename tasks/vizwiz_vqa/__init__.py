"""lmms-eval's `vizwiz_vqa_val` with a log that tells answerable from unanswerable questions."""
