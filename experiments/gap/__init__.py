"""Which mistakes make a hundredfold gap in acceptance between cross-entropy and KL, whose gradients
are equal?"""
