"""Build and run one cell: one combination of levels and one seed."""
