"""Stores of files under keys: folder, memory, S3; and the spool of objects that wait for a store that is away."""
