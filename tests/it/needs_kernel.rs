//! needs_kernel
