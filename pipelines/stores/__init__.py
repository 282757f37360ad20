"""Where artifacts lie: folder, memory, S3, and the spool that waits for a store that is away."""
