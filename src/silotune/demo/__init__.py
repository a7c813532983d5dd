"""The demonstration: three invented organisations, their text, and a recipe that trains in minutes on two cores.

Larkmoss Clinic, Tidewick Bank and Copperfell Insurance do not exist; names, numbers and rules are made up.
"""

from pathlib import Path

RECIPE = Path(__file__).with_name("recipe.toml")
"""The demo's recipe; the silos lie beside it."""
