//! poll(): the driver says what is ready, also where that has side effects: the client asked, as it would have asked
//! the real node.

use nix::poll::PollFlags;

use super::Session;
use crate::backend::Wanted;

/// Somebody polls the file and wants to hear of a change.
pub(super) struct PollWait {
    events: PollFlags,
    notify: Box<dyn Fn() + Send>,
}

impl PollWait {
    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            input: self.events.intersects(PollFlags::POLLIN | PollFlags::POLLRDNORM),
            priority: self.events.contains(PollFlags::POLLPRI),
        }
    }

    pub(super) fn notify(&self) {
        (self.notify)();
    }
}

impl Session {
    /// What is ready of `events`. If nothing is and somebody waits, `notify` is called once when that changes.
    pub fn poll(&self, events: PollFlags, notify: Option<Box<dyn Fn() + Send>>) -> PollFlags {
        let mut state = self.lock();
        if state.ending {
            return PollFlags::POLLERR | PollFlags::POLLHUP;
        }
        // A node cannot be polled for what its watch waits for before the client has asked: first this, then that.
        let ready = self.node.poll(events);
        let Some(notify) = notify.filter(|_| ready.is_empty()) else {
            return ready;
        };
        // Several threads may poll one file; all are woken by one notification and look again.
        let others = state.poll.as_ref().map_or(PollFlags::empty(), |wait| wait.events);
        state.poll = Some(PollWait {
            events: events | others,
            notify,
        });
        let wanted = state.wanted();
        drop(state);
        self.watch_for(wanted);
        // What came before the watch looked. The wait stays: a notification too many only makes them look again.
        self.node.poll(events)
    }

    /// Notifies those who poll if there is something for them. Was there one?
    pub(super) fn advance_poll(&self) -> bool {
        let mut state = self.lock();
        let Some(wait) = &state.poll else { return false };
        if !self.node.poll(wait.events).is_empty() {
            wait.notify();
            state.poll = None;
        }
        true
    }
}
