"""Images that are decoded while they are used: where their bytes lie, a cache of decoded ones, and parts as streams."""
