"""Which known mechanism made the first non-finite number?"""
