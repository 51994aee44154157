"""Twenty perturbations of images with 96 levels: their names (`METHODS`), and applying one (`perturb_image`)."""

from lmms_eval_stability.tasks.perturbations.image.methods import METHODS, PAPER_96
from lmms_eval_stability.tasks.perturbations.image.perturb import check_resources, perturb_array, perturb_image

__all__ = ["METHODS", "PAPER_96", "check_resources", "perturb_array", "perturb_image"]
