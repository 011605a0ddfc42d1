"""What do commands print with `--json`, and what does each field hold?"""
