"""OpenVINO: .xml with .bin, on the processors of servers, gateways and laptops."""
