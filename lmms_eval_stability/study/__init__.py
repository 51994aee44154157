"""A study: base models x (baseline, its re-runs, methods) x tasks from a YAML; planned, run, resumed and compared.

    study = load_study("configs/demo.yaml")       # refuses every mistake with its line
    plan = plan_study(study)                      # the cells: one task of one run each

`commands/study.py` is the command. Besides `plugin.py` this is the one part of the study package that knows models
and tasks by name; it imports neither torch nor lmms_eval, which run in processes of their own.
"""

from .configs import demo_config
from .errors import StudyConfigError
from .plan import Cell, Plan, plan_study
from .schema import Study, json_schema, load_study

__all__ = [
    "Cell",
    "Plan",
    "Study",
    "StudyConfigError",
    "demo_config",
    "json_schema",
    "load_study",
    "plan_study",
]
