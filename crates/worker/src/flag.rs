//! The one flag that tells a trainer to stop, and why it was set.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

/// Why a trainer was told to stop. A later one outweighs an earlier one: a lost lease forbids every further write,
/// whatever was asked before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Why {
    /// The client cancelled the request: keep what is worth keeping, then stop.
    Cancelled = 1,
    /// The worker shuts down: save the state, then stop; another worker goes on from it.
    Shutdown = 2,
    /// The job may belong to another worker by now: stop at once and write nothing.
    Lost = 3,
}

/// Cheap to look at between micro-steps; clones are the same flag.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicU8>);

impl StopFlag {
    /// True once the trainer should stop.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.why().is_some()
    }

    /// Why the trainer should stop; `None` while it should go on.
    #[must_use]
    pub fn why(&self) -> Option<Why> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Why::Cancelled),
            2 => Some(Why::Shutdown),
            _ => Some(Why::Lost),
        }
    }

    /// Tells the trainer to stop. The weightier reason stays.
    pub fn set(&self, why: Why) {
        self.0.fetch_max(why as u8, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::{StopFlag, Why};

    #[test]
    fn the_weightier_reason_stays() {
        let flag = StopFlag::default();
        assert!(!flag.is_set());
        flag.set(Why::Shutdown);
        flag.set(Why::Cancelled);
        assert_eq!(flag.why(), Some(Why::Shutdown));
        let same = flag.clone();
        same.set(Why::Lost);
        assert_eq!((flag.why(), same.why()), (Some(Why::Lost), Some(Why::Lost)));
    }
}
