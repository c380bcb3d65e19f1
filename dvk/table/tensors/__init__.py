"""Files of tensors: what their headers say, and which tensors changed and by how much."""
