"""Two small models made for early exit: their corpus, training, measurement and weights."""
