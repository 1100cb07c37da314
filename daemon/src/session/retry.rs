//! Readers and writers of nodes without a queue: served by the clock.
//!
//! vivid's radio says at every poll that it is ready and has nothing, and wakes nobody when it has; its own read() and
//! write() sleep 20 ms at a time (vivid-radio-rx.c). Drivers that do wake serve their sleepers earlier.

use std::sync::Arc;
use std::time::Duration;

use super::{Session, State};

const PAUSE: Duration = Duration::from_millis(20);

impl Session {
    /// Looks again and again, until nobody sleeps in read() or write().
    pub(super) fn retry_later(self: &Arc<Self>, state: &mut State) {
        if std::mem::replace(&mut state.retrying, true) {
            return;
        }
        let session = Arc::downgrade(self);
        self.device.runtime().spawn(async move {
            loop {
                tokio::time::sleep(PAUSE).await;
                // Not held while nothing is done: the file may be closed meanwhile.
                let Some(session) = session.upgrade() else { return };
                match tokio::task::spawn_blocking(move || session.retry()).await {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => return tracing::error!(%error, "serving a reader or writer failed"),
                }
            }
        });
    }

    fn retry(&self) -> bool {
        self.advance_readers();
        self.advance_writers();
        let mut state = self.lock();
        state.retrying = !state.frames.is_idle() || !state.writer.is_idle();
        self.watch_for(&state);
        state.retrying
    }
}
