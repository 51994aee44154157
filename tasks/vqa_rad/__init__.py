"""The `vqa_rad` task: questions on radiology images from the hub's VQA-RAD, training and test part."""
