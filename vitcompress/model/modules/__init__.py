"""The modules that replace timm's where ours export better or compute with integers."""
