"""Is it any good: comparison of runs, trust in the judge, figures of a data set."""
