"""What keeps a model from learning its training examples by heart; each uses the batch, the parameters or the model."""

from tunelab.regularizers.adversarial import FGSM, PGD
from tunelab.regularizers.averaging import EMA, SWA
from tunelab.regularizers.dropconnect import DropConnect
from tunelab.regularizers.mixing import CutMix, Mixup
from tunelab.regularizers.penalties import L1, L2, ElasticNet

__all__ = ["EMA", "FGSM", "L1", "L2", "PGD", "SWA", "CutMix", "DropConnect", "ElasticNet", "Mixup"]
