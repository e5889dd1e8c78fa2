//! The store on a real Postgres: one test per statement and per promise.

mod claims;
mod cluster;
mod common;
mod events;
mod faults;
mod history;
mod jobs;
mod keys;
mod leases;
mod migrations;
mod notifications;
mod outputs;
mod sweep;
mod uploads;
mod webhooks;
