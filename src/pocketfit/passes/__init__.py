"""The passes, one idea a file. A pass is given its ratios and steps and carries them out; it never decides."""
