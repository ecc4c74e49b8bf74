"""Making exits: self-distillation of a model's own last layers into shallow ones."""
