"""Small models made for early exit: their corpus, training and measurement."""
