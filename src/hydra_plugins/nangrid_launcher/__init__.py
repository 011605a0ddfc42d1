"""Hydra's side of a grid: Hydra finds launchers and sweepers only in the `hydra_plugins` namespace."""
