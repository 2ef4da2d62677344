"""The ground every stage stands on: value types, errors, workspace, image files, networks, losses, metrics."""
