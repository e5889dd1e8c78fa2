//! How close is close: comparing tensors and checking gradients.
