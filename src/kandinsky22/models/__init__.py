"""The networks: one file and one frozen configuration each. No files, no devices, no sampling."""
