"""The benchmark suite: tasks and their data, training, scoring, cost, latency, tables and reports."""
