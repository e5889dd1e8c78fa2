//! Everything kiln keeps in Postgres.
