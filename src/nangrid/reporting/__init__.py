"""How are the results shown to a person?"""
