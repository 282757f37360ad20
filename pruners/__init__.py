"""Cut trained networks: channel graph, criteria, granularities, plans, surgery. Knows torch and numpy only."""
