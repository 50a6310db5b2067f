"""Self-distillation and training of drafts; knows no method by name."""
