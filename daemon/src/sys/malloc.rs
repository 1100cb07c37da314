//! How malloc spends address space.

/// Lets all threads share two arenas. glibc gives each of the first sixteen or so threads its own, and what is free in one
/// is of no use to another: a daemon with a thread for each call that may wait would grow by megabytes for nothing.
pub fn share_arenas() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: the call takes two numbers, and may be made at any time.
        if unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) } == 0 {
            tracing::debug!("malloc keeps an arena for each thread");
        }
    }
}
