"""What pocketfit does, as functions: one file each. `pocketfit` itself offers them under the same names."""
