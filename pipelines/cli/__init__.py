"""The `prunefront` command: one file a topic."""
