"""Making GPTQ and AWQ checkpoints with llm-compressor, calibrated on image and text; what ``quantize`` does.

``calibration`` chooses the documents, ``recipe`` says what is quantised and how, ``output`` writes the folder, ``card``
says how to make it again and ``run`` does one after the other.
"""
