"""Quality and latency of a network, and the machine they were measured on."""
