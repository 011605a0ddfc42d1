"""How is what was found shown to a person?"""
