"""The commands of `vss` that are not the trainer's."""
