//! Text: captions → the contexts both streams of the transformer attend to.
//!
//! ```text
//! caption ─ Tokenizer → ids ─ Gemma → all hidden states ─ Features → one row per stream and token ─ Connector → contexts
//! ```
//!
//! Nothing here is trained and a caption's contexts depend on nothing but the caption, so [`Context`] is a plain value
//! to keep. Captions of different lengths run together without padding: rows of all captions are one long matrix,
//! only attention looks at each caption by itself.

pub mod connector;
mod encoder;
pub mod features;
pub mod gemma;
pub mod tokenizer;

pub use connector::{Connector, ConnectorConfig, Stream};
pub use encoder::{Context, TextEncoder, TextOptions};
pub use features::{FeatureProjection, Features};
pub use gemma::{Gemma, GemmaConfig, Residency};
pub use tokenizer::{PADDED_TOKENS, Tokenizer};
