//! Suites over the whole service live beside this file, one binary each. Here is what several of them share: the
//! [`scripted`] trainer, a [`house`] of real kiln processes and the official [`mod@clients`].

pub mod clients;
pub mod house;
pub mod scripted;
