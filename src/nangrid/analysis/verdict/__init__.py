"""What caused each event of a grid, and what cures it, in plain words?"""

from nangrid.analysis.verdict.cards import event_cards, title_of
from nangrid.analysis.verdict.lines import every_cure, verdict
from nangrid.analysis.verdict.paragraph import counted, event_sentence, paragraph, sentences

__all__ = ["counted", "event_cards", "event_sentence", "every_cure", "paragraph", "sentences", "title_of", "verdict"]
