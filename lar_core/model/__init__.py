"""The paper: PaliGemma, where the instruction looks, the mask, the decoders, the heads, the losses and the training."""
