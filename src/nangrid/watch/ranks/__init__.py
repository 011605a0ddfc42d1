"""How do the processes that train one model together leave the loop together, and where did the failure begin?"""
