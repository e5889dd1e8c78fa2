//! Claims a job and walks it through its stages.
