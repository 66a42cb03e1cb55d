"""How well a quantity predicts the generalization gap over a grid of settings, beyond plain correlation.

`power.predictive_power` is the table; each statistic is a file: `granulated`, `mutual_information`, `sign_error`,
`partial`, `pgdl`; `baselines` are quantities with known answers. They take values x and gaps g [n], the settings as a
`grid.Grid`, and bootstrap counts [resamples, n] (`genmeasure.correlate.resample_counts`), and return one number for
each row of the counts; a row of ones gives the statistic itself. Two copies of one checkpoint are no pair.
"""
