//! Files that whoever started us hands on (sd_listen_fds(3)).

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The files that the environment's `LISTEN_FDS` and `LISTEN_FDNAMES` name for this process, close-on-exec, with their names.
/// Empty the second time.
pub fn listen_fds() -> Vec<(String, OwnedFd)> {
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Vec::new();
    }
    let Ok(files) = sd_notify::listen_fds_with_names() else {
        return Vec::new();
    };
    let owned = files.map(|(fd, name)| {
        // SAFETY: LISTEN_PID has said that these descriptors are meant for this very process, sd_notify has found each of them
        // open (it has set close-on-exec), nobody else in this process knows of them, and the flag above lets nobody take them twice.
        (name, unsafe { OwnedFd::from_raw_fd(fd) })
    });
    owned.collect()
}
