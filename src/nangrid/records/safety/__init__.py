"""What may be read from a directory that could be a stranger's, shown in a terminal, and typed again?"""
