"""Ray: joins a cluster, watches it, stops, and sends studies to it as jobs."""
