"""What accelerators document of the operators that they take, and what a file would leave to the CPU there."""
