"""Search: optimizers that decide which (mixture, fidelity) to train next."""
