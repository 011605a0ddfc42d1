"""What was run and what happened: the typed records of a cell and of a grid, and how they are kept."""
