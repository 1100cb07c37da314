//! S_HW_FREQ_SEEK: a tuner looks for the next station, and the call waits until it has found one.
//!
//! On a non-blocking file drivers refuse it (`EAGAIN`), and the real node's always is. For a client whose file is
//! blocking the real node's becomes so for the length of this call. A second, blocking open would do less: once the
//! client has `V4L2_PRIORITY_RECORD`, no other file can have it (v4l2-dev.c, `v4l2_prio_check`).

use vidcompat_proto::Errno;
use vidcompat_proto::ioctl::Row;

use super::{Blocking, Session};

impl Session {
    /// `VIDIOC_S_HW_FREQ_SEEK`, whose row is `row`: returns when the tuner has come to rest.
    ///
    /// # Errors
    /// What the real driver gives for the same call, `EAGAIN` only where the client's file is non-blocking.
    pub fn seek(&self, row: &'static Row, argument: &mut [u8], who: Blocking) -> Result<i32, Errno> {
        // Whatever else is wrong with the call is said now, and without waiting.
        match self.node.ioctl(row, argument) {
            Err(Errno::EAGAIN) if !self.is_nonblocking(who) => {
                // Nobody may read or dequeue meanwhile: such a call would wait in the driver, where nothing wakes it.
                // Drivers hold the lock of the whole node while they seek.
                let _state = self.lock();
                self.node.blocking_ioctl(row, argument)
            }
            outcome => outcome,
        }
    }
}
