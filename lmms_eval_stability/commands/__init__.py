"""One module per command of `lmms-eval-stability`; the table in `cli.py` names them."""
