"""The published tables as data.

Sun et al., "Does Acceleration Cause Hidden Instability in Vision Language Models? Uncovering Instance-Level Divergence
Through a Large-Scale Empirical Study", EMNLP 2025 (arXiv 2503.06794), tables 1 to 12. Values are as printed, mistakes
included: `lmms-eval-stability check-table paper` finds them, and `corrections` says what a comparison does about them.
"""

from .published import COLUMNS, SIZES, TABLES, read_table, table_path

__all__ = ["COLUMNS", "SIZES", "TABLES", "read_table", "table_path"]
