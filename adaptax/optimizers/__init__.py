"""The algorithms, one module for each family. Siblings do not know each other."""
