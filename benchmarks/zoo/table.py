"""placeholder"""
def write_table(*a): pass
