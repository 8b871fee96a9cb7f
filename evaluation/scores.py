"""Old name of `verification`, `few_shot` and `thresholds`, while callers move."""

from evaluation.few_shot import *  # noqa: F403
from evaluation.thresholds import *  # noqa: F403
from evaluation.verification import *  # noqa: F403
