"""Tasks on pictures unlike those that the embedded model was trained on; the questions are those of `shapes_vqa`."""
