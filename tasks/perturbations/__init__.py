"""Perturbations of images and questions: 20 image methods with 96 levels, 35 text methods with 87 (Chen et al. 2023).

Chen et al., "Benchmarking Robustness of Adaptation Methods on Pre-trained Vision-Language Models", NeurIPS 2023; code
at github.com/adarobustness/corruption.
"""
