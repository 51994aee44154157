"""The `shapes_vqa` task: 2,000 one-word questions about drawn scenes, for the embedded demo model."""
