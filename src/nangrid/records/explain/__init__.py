"""What does an autopsy show, and how sure is it?"""

from nangrid.records.explain.lines import explain, format_number, operands

__all__ = ["explain", "format_number", "operands"]
