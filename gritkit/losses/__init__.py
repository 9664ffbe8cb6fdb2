"""The objectives. A loss returns a sum; the caller divides by a count that it can see.

This package knows nothing about models, data or training loops: tensors in, a scalar out.
"""

from gritkit.losses.contrastive import Asked, InfoNCE, Offered
from gritkit.losses.head import summed_nll
from gritkit.losses.next_token import NextToken
from gritkit.losses.router import RouterBalance

__all__ = ["Asked", "InfoNCE", "NextToken", "Offered", "RouterBalance", "summed_nll"]
