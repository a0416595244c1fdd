"""What is seen before and in a merge: changes, conflicts, fates, spectra, kinship, and advice."""
