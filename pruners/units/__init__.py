"""What a unit is made of: the view that a criterion gets, masks, watched layers."""
