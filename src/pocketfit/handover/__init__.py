"""The network without pocketfit: its weights, a module of plain torch that builds it, and torch.export's file."""
