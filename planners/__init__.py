"""Decides from a dataset how to preprocess, train and predict: fingerprint, plan and folds."""
