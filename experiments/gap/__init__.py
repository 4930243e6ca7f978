"""A study of the mistakes that make a hundredfold gap in acceptance between cross-entropy and KL,
whose gradients are equal."""
