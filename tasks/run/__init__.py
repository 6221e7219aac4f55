"""The state of a run: its checkpoints, going on from one, and the learning rate over its steps."""
