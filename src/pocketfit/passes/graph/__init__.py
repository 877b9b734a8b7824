"""What torch.export says of a network: operators, channels, scales."""
