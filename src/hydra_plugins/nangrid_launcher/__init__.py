"""How does Hydra hand a grid over? It takes launchers from the `hydra_plugins` namespace only."""
