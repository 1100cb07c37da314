//! Adoption: the program's own pages become the device's buffer, and ordinary memory again.

use crate::link::Link;

/// Is anything of the program's adopted? One load.
pub(crate) fn any() -> bool {
    false
}

/// A QBUF was told to move first: does what the daemon wants, one move after the other. Afterwards the call is made again.
pub(crate) fn obey(_link: &Link) {}

/// Buffers were freed, a file was closed: gives back what no session has any more.
pub(crate) fn reconcile() {}
