"""Makes and scores masks: predicting, ensembling, restoring, evaluating."""
