//! Memory of the process as the kernel counts it.

/// Gives what is free back to the kernel: a look at every device of a host takes much, for a moment.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number of bytes to keep, no memory of ours (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
