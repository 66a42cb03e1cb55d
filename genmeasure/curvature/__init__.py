"""Second-order quantities of the loss: products, traces, quadratic forms, eigenvalues."""
