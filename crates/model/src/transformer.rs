//! The audio+video transformer of LTX-2.3: forward, and backward block by block.
//!
//! One list of blocks; a block takes both streams and returns both. Either stream may be absent, in the call or
//! in the loaded model ([`Halves`]). Knows nothing of noise schedules, losses or where tokens come from: positions,
//! timesteps and contexts are inputs.

pub mod adaln;
pub mod attention;
mod block;
mod config;
mod feed_forward;
mod modality;
mod model;
mod perturbation;
mod recompute;
pub mod rope;

pub use block::Block;
pub use config::{Halves, RopeConfig, Stream, StreamConfig, TransformerConfig};
pub use feed_forward::FeedForward;
pub use modality::{Args, CrossArgs, Inputs, Modality, StreamArgs, Streams};
pub use model::Transformer;
pub use perturbation::{Perturbation, Perturbations, Skip};
pub use recompute::{Gradients, Kept, replay};
