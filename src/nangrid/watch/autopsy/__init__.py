"""Where did the first non-finite number of a failing step come from?"""
