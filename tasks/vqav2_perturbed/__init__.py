"""VQAv2 (validation) with perturbed images and questions."""
