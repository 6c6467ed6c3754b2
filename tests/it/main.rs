//! The integration tests: one binary, every scenario in a lab of its own (`tests/lab`), real kernels on real TAPs.
//!
//! Tests in `needs_kernel` boot the kernel that is built from source; `make test-guests` runs them.
#![allow(
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "not shipped"
)]

#[path = "../lab/mod.rs"]
mod lab;

mod api;
mod bad_input;
mod demo;
mod first_guest;
mod guest_config;
mod metadata;
mod needs_kernel;
mod operate;
mod plumbing;
mod restart;
mod stats;
mod walls;
