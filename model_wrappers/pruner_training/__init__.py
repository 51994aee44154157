"""Training the modules of LVPruning on a frozen base model: data, masks, losses, loop."""
