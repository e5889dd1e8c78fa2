//! Object storage, and the one HTTP client for addresses that a user gave.
