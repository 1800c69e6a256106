# Importing them makes the emulated device known for good: `test_devices.py` does it in another process.
collect_ignore = ["device_checks.py", "emulated_device.py"]
