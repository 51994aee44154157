"""Quantised models: one scheme per file; what each loads, where it runs and what it leaves in 16 bit."""
