//! DQEVENT: waiting for a V4L2 event.

use std::collections::VecDeque;
use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::ioctl::Row;

use super::{Blocking, BoxedWaiter, CallId, Session, State};

/// Those who sleep in DQEVENT, first come first served.
#[derive(Default)]
pub(super) struct EventQueue(VecDeque<(&'static Row, CallId, BoxedWaiter)>);

impl EventQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = BoxedWaiter> + '_ {
        self.0.drain(..).map(|(_, _, waiter)| waiter)
    }
}

impl Session {
    /// `VIDIOC_DQEVENT`, whose row is `row`: `waiter` is answered now or later.
    pub fn dequeue_event(self: &Arc<Self>, row: &'static Row, who: Blocking, mut waiter: BoxedWaiter) {
        let call = who.who.call;
        // With the lock, without which the real node's file may be blocking (`seek`).
        let first = self.take_event(&mut self.lock(), row, call);
        match first {
            // ENOENT is what a non-blocking file gets when there is none (v4l2-event.c:37).
            Err(Errno::ENOENT) if !self.is_nonblocking(who) => {
                let mut state = self.lock();
                if state.ending {
                    drop(state);
                    return waiter.answer(Err(Errno::ENODEV));
                }
                if !self.sleep(&mut waiter, Session::interrupt_event) {
                    drop(state);
                    return waiter.restart();
                }
                state.events.0.push_back((row, call, waiter));
                self.watch_for(&state);
                drop(state);
                self.advance_events();
            }
            outcome => waiter.answer(outcome.as_deref().map_err(|errno| *errno)),
        }
    }

    /// The next event, without waiting; or the one that `call` has got from a daemon before us, which did not live to
    /// answer.
    fn take_event(&self, state: &mut State, row: &Row, call: CallId) -> Result<Vec<u8>, Errno> {
        if let Some((_, event)) = state.last_event.as_ref().filter(|(by, _)| *by == call.unique)
            && call.is_resent
        {
            return Ok(event.clone());
        }
        let mut event = vec![0; row.command.size()];
        self.node.ioctl(row, &mut event)?;
        if self.is_kept() {
            state.last_event = Some((call.unique, event.clone()));
            self.commit(state);
        }
        Ok(event)
    }

    /// Serves those who sleep in DQEVENT. Was there one?
    pub(super) fn advance_events(&self) -> bool {
        let mut any = false;
        loop {
            let mut state = self.lock();
            let Some((row, call, waiter)) = state.events.0.pop_front() else {
                return any;
            };
            any = true;
            match self.take_event(&mut state, row, call) {
                Err(Errno::ENOENT) => {
                    state.events.0.push_front((row, call, waiter));
                    return any;
                }
                outcome => {
                    drop(state);
                    waiter.answer(outcome.as_deref().map_err(|errno| *errno));
                }
            }
        }
    }

    fn interrupt_event(&self, id: u64) {
        let mut state = self.lock();
        let at = state.events.0.iter().position(|(_, _, waiter)| waiter.id() == id);
        let waiter = at.and_then(|at| state.events.0.remove(at));
        drop(state);
        if let Some((_, _, waiter)) = waiter {
            waiter.restart();
        }
    }
}
