//! The HTTP face: fal's wire protocol over the job table.
