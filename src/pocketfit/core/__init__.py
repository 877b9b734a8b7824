"""The data types of pocketfit as frozen dataclasses: numpy and the standard library only, no effects."""
