//! What can go wrong in an op: always the caller's shapes, dtypes or tracking, named so that the
//! tensor can be found.

use candle_core::DType;

/// The result of every op. A [`Error`] travels inside the tensor library's own error type, because
/// that is what model code propagates.
pub type Result<T> = candle_core::Result<T>;

/// A refused call. Nothing here can be retried: the call itself must change.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor has a shape the op cannot use.
    #[error("{op}: {what} has shape {got:?}, expected {expected}")]
    Shape {
        /// The op.
        op: &'static str,
        /// Which argument.
        what: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// What would be accepted.
        expected: String,
    },
    /// A tensor has an element type the op cannot use.
    #[error("{op}: {what} has dtype {got:?}, expected {expected}")]
    DType {
        /// The op.
        op: &'static str,
        /// Which argument.
        what: &'static str,
        /// Its element type.
        got: DType,
        /// What would be accepted.
        expected: &'static str,
    },
    /// A constant of the op is part of a graph: its gradient would silently be missing.
    #[error(
        "{op}: {what} is tracked for gradients, but this op yields none for it; detach it or use another op"
    )]
    TrackedConstant {
        /// The op.
        op: &'static str,
        /// Which argument.
        what: &'static str,
    },
    /// A number is outside its range.
    #[error("{op}: {what} is {got}, expected {expected}")]
    Value {
        /// The op.
        op: &'static str,
        /// Which argument.
        what: &'static str,
        /// Its value.
        got: String,
        /// What would be accepted.
        expected: String,
    },
    /// A tensor is on a device this build has no code for.
    #[error("{op}: {what} is not on the CPU, and this build has no other implementation")]
    Device {
        /// The op.
        op: &'static str,
        /// Which argument.
        what: &'static str,
    },
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        Self::wrap(error)
    }
}
