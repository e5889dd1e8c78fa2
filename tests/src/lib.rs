//! Suites over the whole service live beside this file, one binary each.
