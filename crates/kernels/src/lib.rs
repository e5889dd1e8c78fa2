//! Tensor operations with forward, backward and a plain CPU reference.
