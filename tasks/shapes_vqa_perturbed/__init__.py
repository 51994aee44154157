"""shapes_vqa with perturbed images and questions."""
