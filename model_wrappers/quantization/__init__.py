"""Quantised models: one scheme per file; what each loads, where it runs and what it leaves in 16 bit.

The schemes are suffixes of model names (``llava_int8``) and values of ``quantization=`` on any other model. ``int8``
and ``nf4`` quantise a 16-bit checkpoint while it is loaded; ``gptq`` and ``awq`` load a checkpoint that already is.
What published checkpoints get wrong for current transformers is corrected in ``module_names``; what cannot be corrected
is refused, because transformers would go on with random weights and a warning.
"""
