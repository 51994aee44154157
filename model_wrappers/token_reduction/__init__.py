"""Visual token reduction: one method, one file. All but LVPruning are training-free."""

from lmms_eval_stability.model_wrappers.token_reduction.base import RowTokens, Session, TokenReducer
from lmms_eval_stability.model_wrappers.token_reduction.downsample import Downsample
from lmms_eval_stability.model_wrappers.token_reduction.fastv import FastV
from lmms_eval_stability.model_wrappers.token_reduction.hired import HiRED
from lmms_eval_stability.model_wrappers.token_reduction.lofi import LoFi
from lmms_eval_stability.model_wrappers.token_reduction.lvpruning import LVPruning
from lmms_eval_stability.model_wrappers.token_reduction.pyramiddrop import PyramidDrop
from lmms_eval_stability.model_wrappers.token_reduction.random import Random
from lmms_eval_stability.model_wrappers.token_reduction.random_inside import RandomInside
from lmms_eval_stability.model_wrappers.token_reduction.sparsevlm import SparseVLM
from lmms_eval_stability.model_wrappers.token_reduction.visionzip import VisionZip

__all__ = [
    "Downsample",
    "FastV",
    "HiRED",
    "LVPruning",
    "LoFi",
    "PyramidDrop",
    "Random",
    "RandomInside",
    "RowTokens",
    "Session",
    "SparseVLM",
    "TokenReducer",
    "VisionZip",
]
