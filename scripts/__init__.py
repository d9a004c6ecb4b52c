"""The commands: `valueapprox NAME`, `python -m valueapprox NAME`, or each file as a script."""
