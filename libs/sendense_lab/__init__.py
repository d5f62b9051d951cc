"""A simulated vCenter with real disks, to rehearse backup and disaster without VMware.

`sendense-lab serve` is the server; `sendense_lab.client.LabClient` drives it from Python.
"""
