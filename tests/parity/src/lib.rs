//! Comparison with the reference tensors; the suites live beside this file.
