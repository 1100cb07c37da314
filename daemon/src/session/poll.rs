//! poll(): the driver says what is ready, also where that has side effects: the client asked, as it would have asked
//! the real node.

use nix::poll::PollFlags;

use vidcompat_proto::abi::v4l2::buf_type;

use super::{Session, State};
use crate::backend::v4l2::RealNode;
use crate::backend::{Readiness, Wanted};

/// What can be dequeued although the device has it no more: a daemon before us has got it.
fn lost(state: &State) -> PollFlags {
    let of = |has_lost, flags| if has_lost { flags } else { PollFlags::empty() };
    let [capture, output] = state.queues.each().map(|queue| queue.ledger.has_lost());
    of(capture, PollFlags::POLLIN | PollFlags::POLLRDNORM)
        | of(output, PollFlags::POLLOUT | PollFlags::POLLWRNORM)
}

/// Somebody polls the file and wants to hear of a change.
pub(super) struct PollWait {
    events: PollFlags,
    /// There was something already when they looked. Who waits for edges only (EPOLLET) does not look again, so the
    /// next change counts, whatever is ready.
    was_ready: bool,
    notify: Box<dyn Fn() + Send>,
}

impl PollWait {
    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            input: self.events.intersects(PollFlags::POLLIN | PollFlags::POLLRDNORM),
            output: self.events.intersects(PollFlags::POLLOUT | PollFlags::POLLWRNORM),
            // Also for those who did not ask for it: this is how an unplugged device is noticed.
            priority: true,
            look: 0,
        }
    }

    pub(super) fn notify(&self) {
        (self.notify)();
    }
}

impl Session {
    /// What is ready of `events`. If somebody waits, `notify` is called once when that changes; a daemon after us tells
    /// whoever has `handle`.
    pub fn poll(&self, events: PollFlags, handle: u64, notify: Option<Box<dyn Fn() + Send>>) -> PollFlags {
        let mut state = self.lock();
        if state.ending {
            return PollFlags::POLLERR | PollFlags::POLLHUP;
        }
        // A node cannot be polled for what its watch waits for before the client has asked: first this, then that.
        let ready = self.node.poll(events) | (lost(&state) & events);
        let Some(notify) = notify else { return ready };
        if std::mem::replace(&mut state.poll_handle, handle) != handle {
            self.commit(&state);
        }
        // Several threads may poll one file; all are woken by one notification and look again.
        let others = state.poll.as_ref().map_or(PollFlags::empty(), |wait| wait.events);
        state.poll = Some(PollWait {
            events: events | others,
            was_ready: !ready.is_empty(),
            notify,
        });
        if ready.is_empty() {
            self.watch_anew(&state, buf_type::VIDEO_CAPTURE);
        } else {
            self.watch_for(&state);
        }
        // No second look: whoever serves a change that came since the first waits for the lock, and a registration that
        // is new tells what is there already. A frame that is told of twice would be an edge too many.
        ready
    }

    /// Notifies those who poll if there is something for them. Was there one?
    pub(super) fn advance_poll(&self, what: Readiness) -> bool {
        Self::tell_polling(&self.node, &mut self.lock(), what)
    }

    /// The same for who has the lock.
    pub(super) fn tell_polling(node: &RealNode, state: &mut State, what: Readiness) -> bool {
        let Some(wait) = &state.poll else { return false };
        let news = if wait.was_ready {
            what == Readiness::New
        } else {
            !node.poll(wait.events).is_empty()
        };
        if news {
            wait.notify();
            state.poll = None;
        }
        true
    }
}
