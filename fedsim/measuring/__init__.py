"""A predictor in, rows out."""
