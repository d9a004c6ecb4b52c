"""Networks: the flat weight vector, its layers, and the gradient written out by hand."""
