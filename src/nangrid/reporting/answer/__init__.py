"""What went wrong in this directory, why, how sure is that, and what to change first?"""

from nangrid.reporting.answer.about import answer_about
from nangrid.reporting.answer.markdown import as_markdown
from nangrid.reporting.answer.screen import as_screen

__all__ = ["answer_about", "as_markdown", "as_screen"]
