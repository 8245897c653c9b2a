"""Benchmarks of the operations, of inference and of training against other ways to run the same network.

`timing` takes turns in one process, `cases` and `network` say what is measured, `rivals` prepares eager PyTorch,
torch.compile, ONNX Runtime and OpenVINO, `measure` makes a row, `process` gives it a process of its own, `schedule`
shares the time among rows, `run` measures them, `goals` holds them against floors, `report` and `plots` show them.
"""
