"""What was run, and what happened? Typed records of cells and grids, and how they are stored."""
