"""GQA with perturbed images and questions."""
