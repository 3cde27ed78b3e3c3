"""Recipes: the paper's, as its authors' code has it, and ours."""

from __future__ import annotations

from ehrnet_model.errors import EhrnetError
from ehrnet_model.training.losses import LossOptions
from ehrnet_model.training.options import TrainOptions
from ehrnet_model.training.sampler import SampleOptions
from ehrnet_model.variants import Variant

PRESETS = ("ours", "paper")

# Images per GPU in the published configurations; H0's is that of its unfrozen phase.
_PUBLISHED_BATCH = {0: 29, -1: 6, -2: 8, -3: 10, -4: 48}


def preset(name: str, phi: int) -> TrainOptions:
    """Options of a recipe for a variant; the packs are still to be given.

    The paper's: Adam at 1e-3, a tenth after 200 and again after 260 of 300 epochs, no decay, no
    warm-up, no average of weights; the plain mean squared error at both resolutions, tags at 1e-3.
    The published code keeps the backbone frozen throughout whatever it is told, of which the paper
    says nothing; here it is trained (``freeze`` 7 keeps it).

    Ours: what ``TrainOptions`` says, with most windows as second looks see them.

    Raises:
        EhrnetError: there is no such recipe.
    """
    if name == "ours":
        return TrainOptions(phi=phi, sample=SampleOptions(close=0.75))
    if name != "paper":
        raise EhrnetError(f"there is no preset '{name}': {' or '.join(PRESETS)}.")
    return TrainOptions(
        phi=phi,
        epochs=300,
        windows=((Variant.from_phi(phi).input_size, _PUBLISHED_BATCH[phi], 1.0),),
        optimiser="adamw",
        lr=1e-3,
        weight_decay=0.0,
        warmup_steps=0,
        schedule="steps",
        ema=0.0,
        drop_connect=0.2,
        bf16=False,
        loss=LossOptions(
            scale=1.0, low=1.0, high=1.0, peak_weight=0.0, tag=1e-3, place=0.0, sides=0.0
        ),
        sample=SampleOptions(published=True),
    )
