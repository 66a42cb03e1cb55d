"""Fine-tuning: algorithms composed of small final pieces, and one loop that runs any of them.

`loop.fine_tune` runs an `algorithm.Algorithm`. Its pieces are a probe (where the gradient is taken, `probes`), a loss
(`losses`), a penalty (`penalties`), a constraint (`constraints`), an average of the weights (`averages`), factors
trained in their place (`adapters`) and a rule that picks the epoch (`selection`). Each piece also works in a loop of
your own. The registered algorithms are in `algorithms`, one file each.
"""
