"""The federation on Flower: the only place that imports flwr.

Importing this package settles Flower's and Ray's switches before either is loaded: no telemetry, no check for
updates, no installation of packages at run time, workers at the priority of this process.
"""

import os

for _name, _value in (
    ("FLWR_TELEMETRY_ENABLED", "0"),
    ("FLWR_DISABLE_UPDATE_CHECK", "1"),
    ("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
    ("RAY_worker_niceness", "0"),
):
    os.environ[_name] = _value
