"""The tables that decisions stand on."""
