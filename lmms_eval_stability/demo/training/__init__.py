"""How the demo model was trained; nothing else in `lmms_eval_stability` imports torch.

`python -m lmms_eval_stability.demo.training` trains, `.evaluate` reports the held-out accuracy, `.curve` draws the log.
"""
