//! Suites over the whole service live beside this file, one binary each. Here is what several of them share: the
//! [`scripted`] trainer and a [`house`] of real kiln processes.

pub mod house;
pub mod scripted;
