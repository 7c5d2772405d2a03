"""Every op of a decode step by itself, on the sizes of real models: time, bytes, FLOPs, roofline, error, peers."""
