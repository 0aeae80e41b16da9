"""MultimodalCodec, learnt prior and posterior of a run."""
