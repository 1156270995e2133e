"""Personal data out of prompts, answers and logs: recognised, and replaced by placeholders such as [EMAIL].

folding -> recognisers, phones, credentials -> masker -> logs; and back again: restoring
"""

from isoflop.serve.masking.logs import masked_logs
from isoflop.serve.masking.masker import KINDS, Masked, Masker, MaskStream
from isoflop.serve.masking.restoring import RestoreStream

__all__ = ["KINDS", "MaskStream", "Masked", "Masker", "RestoreStream", "masked_logs"]
