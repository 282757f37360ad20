"""Ray: joining a cluster, watching it, stopping, and sending studies to it as jobs."""
