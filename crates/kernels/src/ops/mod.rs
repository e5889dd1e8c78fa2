//! One file per op: contract, CPU code, backward where one exists.

mod columns;
pub mod conv1d;
pub mod conv2d;
pub mod snake;
mod storage;
