"""First and second turns for training data, drawn from a bank of original templates and words."""
