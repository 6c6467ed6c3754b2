//! Memory of the process as the kernel counts it, and who hands it out.

#[cfg(all(target_arch = "x86_64", not(fuzzing)))]
pub use jemalloc::give_back;

/// jemalloc keeps what is of one size together. With glibc's allocator the answers that the resolver keeps came to lie in what its questions
/// under way had left, and held down 50 MiB more than they were (docs/performance.md, `rss_mib_after_1500000_names`). It takes the size of a
/// page for what the machine has that builds it: it is for machines that all have the same.
#[cfg(all(target_arch = "x86_64", not(fuzzing)))]
mod jemalloc {
    #[global_allocator]
    static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

    /// What it reads at its start (jemalloc(3)). Two arenas whatever the number of threads, for each keeps what it has had: 4,000 VMs take half
    /// of the memory so. What nobody has needed for a second is given back when something else is asked for.
    // SAFETY: the name is jemalloc's own for this (its prefix and `malloc_conf`), a pointer to a C string, which `Option<&c_char>` is.
    #[unsafe(export_name = "_rjem_malloc_conf")]
    static CONFIGURATION: Option<&'static libc::c_char> =
        // SAFETY: a C string's first byte is one to be read, and stays.
        Some(unsafe { &*c"narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0".as_ptr() });

    /// Gives what is free back to the kernel: a look at every device of a host takes much, for a moment.
    pub fn give_back() {
        // SAFETY: the name is a C string; nothing is read or written besides (jemalloc(3), `arena.<i>.purge` of MALLCTL_ARENAS_ALL).
        unsafe {
            let nothing = std::ptr::null_mut();
            tikv_jemalloc_sys::mallctl(c"arena.4096.purge".as_ptr(), nothing, nothing.cast(), nothing, 0);
        }
    }
}

/// Gives what is free back to the kernel, as far as the C library's allocator does.
#[cfg(not(all(target_arch = "x86_64", not(fuzzing))))]
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
