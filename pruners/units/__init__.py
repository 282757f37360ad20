"""Units of pruning: the view that a criterion gets, masks, and a watch over the layers' calls."""
