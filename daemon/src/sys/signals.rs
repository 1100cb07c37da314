//! What Rust's start-up changes about signals.

/// Gives SIGPIPE its default action again, which a program that we become expects to have.
pub fn default_sigpipe() {
    // SAFETY: the default action is no handler that could do anything wrong.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}
