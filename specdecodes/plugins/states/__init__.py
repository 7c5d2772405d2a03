"""State back-ends: what scoring keeps of a recurrent layer, and how a commit moves its state."""
