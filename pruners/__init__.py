"""Pruning of trained networks: channel graph, criteria, granularities, plans, surgery. Needs only torch and numpy."""
