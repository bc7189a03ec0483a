"""Statistics of an evaluation: metrics, intervals, calibration, McNemar's test and drift."""
