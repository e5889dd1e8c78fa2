//! LTX-2.3, named as in the checkpoint.
//!
//! Weight files and their configuration ([`Checkpoint`], [`Section`]), the builders' view of them ([`Weights`]),
//! and the components built on both. Struct fields and `pp` paths spell the checkpoint, all sizes come from the
//! configuration inside it.
//!
//! Invariants: knows nothing of requests, modes or training data, and of no files other than weights. Layers know
//! no devices: the ops of `kernels` dispatch. A builder asks for tensors and computes nothing, so that it can be
//! walked without weights.

pub mod audio_vae;
pub mod checkpoint;
mod config;
mod error;
pub mod init_tiny;
pub mod inspect;
pub mod lora;
pub mod nn;
pub mod survey;
pub mod text;
pub mod transformer;
pub mod video_vae;
mod weights;

pub use checkpoint::{Checkpoint, Component};
pub use config::Section;
pub use error::{Error, Result, TensorProblems};
pub use lora::LoraSet;
pub use weights::{TensorSpec, Weights, random_values};
