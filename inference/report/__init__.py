"""The report: everything that is known of a model and its data, for people to read and to publish."""
