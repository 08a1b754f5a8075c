"""The benchmark suite: tasks and their data, training, scoring, cost, latency, tables and reports."""

import os

# Threads that wait for each other must not spin: with one core busy elsewhere, spinning makes a 2-core training over
# ten times slower. Read by the OpenMP runtime when torch is first imported, so it stands here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
