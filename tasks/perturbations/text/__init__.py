"""The 35 text methods with 87 levels of Chen et al. 2023, as own code.

`METHODS` lists them in the paper's order, `perturb_text` applies one level to one text. What a method needs beyond this
package (a tagger, WordNet, a table, a model) is said by `Resources`; a level whose need is not met raises, and
`available_levels` tells which levels can be made. docs/perturbations/text.md has the definition of every method.

Importing this package is cheap: spaCy, TextBlob, lemminflect and transformers are imported on first use.
"""

from lmms_eval_stability.tasks.perturbations.text.neural import precompute
from lmms_eval_stability.tasks.perturbations.text.registry import METHODS, perturb_text
from lmms_eval_stability.tasks.perturbations.text.requirements import (
    available_levels,
    describe_resources,
    missing_resources,
)
from lmms_eval_stability.tasks.perturbations.text.resources import Resources, UnreadableResourceError

__all__ = [
    "METHODS",
    "Resources",
    "UnreadableResourceError",
    "available_levels",
    "describe_resources",
    "missing_resources",
    "perturb_text",
    "precompute",
]
