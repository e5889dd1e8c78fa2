//! Everything kiln keeps in Postgres: the queue, its log lines, webhooks to send, keys, uploads.
//!
//! [`Store`] is the one handle; servers and workers each hold a clone and never see SQL. A request enters with
//! [`Store::submit`], a worker takes it with [`Store::claim`] and from then on writes under its [`Lease`]; what
//! clients ask for is [`Store::status`], [`Store::result`] and [`Store::request_cancel`]. [`cluster`] is the private
//! Postgres that kiln starts when nobody gave it one.
//!
//! Invariants:
//! - What a call reported as done is committed; a call that lost its connection is repeated by the store itself,
//!   and every write is made so that a repetition changes nothing.
//! - Every write of a worker names job, attempt and token of its lease, and is refused once the lease is gone.
//! - A job becomes final exactly once, and its webhook's delivery row appears in the same transaction.
//! - Time is the database's (`kiln_now()`), never this machine's.
//! - Knows nothing of HTTP, media or tensors; what a failure looks like on the wire is `spec`'s business.

mod batch;
pub mod cluster;
mod error;
mod events;
mod history;
mod hub;
mod jobs;
mod keys;
mod leases;
mod options;
mod outputs;
mod positions;
mod retry;
mod secrets;
mod store;
mod submit;
mod sweep;
mod uploads;
mod webhooks;

pub use error::Error;
pub use history::{Deletion, ListFilter, ListKind, Listed, Page, Purged};
pub use hub::{Subscription, WebhookSignal, WorkSignal};
pub use jobs::{Answer, Cancel, Log, Logs, Priority, State, Status};
pub use keys::{ApiKey, KeyText, NewKey, Verified};
pub use leases::{Claim, Lease, Renewal, Requeued};
pub use options::Options;
pub use outputs::{Doomed, OWN_SCHEME, Output, Removal};
pub use secrets::SigningKey;
pub use store::{Migrated, Store};
pub use submit::{NewJob, Submitted, Work};
pub use sweep::{QueueCount, Recent, Swept};
pub use uploads::{
    Completed, Content, Lifecycle, MAX_PARTS, NewUpload, Part, Recorded, StoredObject, Upload,
};
pub use webhooks::Delivery;
