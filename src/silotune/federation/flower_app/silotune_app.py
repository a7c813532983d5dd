"""What Flower sends to its nodes: these two names. The code behind them is each machine's own silotune."""

from silotune.flower import client_app, server_app

__all__ = ["client_app", "server_app"]
