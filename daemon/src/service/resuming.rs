//! Waiting for a node that goes on where a daemon before us has ended.
//!
//! What its files were is asked of the device, which may hang. So that is done on the node's own thread, and here it is only
//! waited for: a moment by everybody, for all such devices together, longer by somebody else, and not for ever.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long all other devices wait for one.
const MOMENT: Duration = Duration::from_secs(1);
/// How long they wait in the end for the next one when many hang: what a device takes that does not.
const LEAST: Duration = Duration::from_millis(50);

/// What is left of the time that all devices wait for those that hang.
#[derive(Debug)]
pub(super) struct Patience(Mutex<Duration>);

impl Patience {
    pub(super) fn new() -> Self {
        Self(Mutex::new(2 * MOMENT))
    }

    fn moment(&self) -> Duration {
        self.left().clamp(LEAST, MOMENT)
    }

    fn waited(&self, time: Duration) {
        let mut left = self.left();
        *left = left.saturating_sub(time);
    }

    fn left(&self) -> MutexGuard<'_, Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long its own clients do.
const SILENCE: Duration = Duration::from_secs(20);

/// A node that goes on.
pub(super) struct Resuming<E> {
    name: String,
    /// Ends it; it is made anew when the end is reported.
    end: E,
    moment: Duration,
    silence: Duration,
}

impl<E: FnOnce() -> io::Result<()> + Send + 'static> Resuming<E> {
    /// What it stands for, and how it is ended where nothing else tells those who wait for it.
    pub(super) fn of(name: &str, end: E) -> Self {
        Self {
            name: name.to_owned(),
            end,
            moment: MOMENT,
            silence: SILENCE,
        }
    }

    /// Until it goes on, and has said whether everybody who waits can be told, or a moment has passed.
    ///
    /// # Errors
    /// No thread.
    pub(super) fn wait(mut self, has_resumed: Receiver<bool>, patience: &Patience) -> io::Result<()> {
        let begun = Instant::now();
        self.moment = self.moment.min(patience.moment());
        let outcome = self.wait_a_moment(has_resumed);
        patience.waited(begun.elapsed());
        outcome
    }

    fn wait_a_moment(self, has_resumed: Receiver<bool>) -> io::Result<()> {
        match has_resumed.recv_timeout(self.moment) {
            Err(RecvTimeoutError::Timeout) => {}
            outcome => {
                self.resumed(outcome.unwrap_or(false));
                return Ok(());
            }
        }
        tracing::warn!(
            device = self.name,
            "the device does not answer for the files that a daemon before us has had open: their programs wait; the other \
             devices go on"
        );
        let later = thread::Builder::new().name("resuming".into());
        later.spawn(move || self.wait_on(&has_resumed)).map(drop)
    }

    fn wait_on(self, has_resumed: &Receiver<bool>) {
        match has_resumed.recv_timeout(self.silence.saturating_sub(self.moment)) {
            Err(RecvTimeoutError::Timeout) => {
                tracing::error!(
                    device = self.name,
                    "the device has not answered for {} s: its node is ended, and who waits for it is told; it is served \
                     again when its driver answers",
                    self.silence.as_secs()
                );
                self.end();
            }
            outcome => self.resumed(outcome.unwrap_or(false)),
        }
    }

    fn resumed(self, all_can_be_told: bool) {
        if !all_can_be_told {
            self.end();
        }
    }

    fn end(self) {
        if let Err(error) = (self.end)() {
            tracing::error!(device = self.name, %error, "who waits for a lost file waits for the end of the node");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, LEAST, MOMENT, Mutex, Patience, Resuming};
    use std::sync::mpsc::{Sender, channel};
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(20);

    /// Waits, with a moment and a silence, for what `resume` says. Was it ended?
    fn is_ended(moment: Duration, silence: Duration, resume: impl FnOnce(Sender<bool>)) -> bool {
        let (ended, ends) = channel();
        let resuming = Resuming {
            moment,
            silence,
            ..Resuming::of("/dev/video0", move || {
                ended.send(()).map_err(std::io::Error::other)
            })
        };
        let (resumed, has_resumed) = channel();
        let begun = Instant::now();
        let mut resumed = Some(resumed);
        let mut resume = Some(resume);
        if moment == LONG
            && let (Some(resume), Some(resumed)) = (resume.take(), resumed.take())
        {
            resume(resumed);
        }
        resuming
            .wait(has_resumed, &Patience(Mutex::new(moment)))
            .expect("a thread");
        assert!(begun.elapsed() < LONG / 2, "everybody has waited for it");
        if let (Some(resume), Some(resumed)) = (resume, resumed) {
            resume(resumed);
        }
        // Without an end its sender goes.
        ends.recv_timeout(LONG).is_ok()
    }

    #[test]
    fn one_that_goes_on_is_ended_only_where_somebody_cannot_be_told() {
        for (can_tell, ends) in [(true, false), (false, true)] {
            let say = |resumed: Sender<bool>| resumed.send(can_tell).expect("it listens");
            assert_eq!(is_ended(LONG, LONG, say), ends);
            assert_eq!(is_ended(Duration::from_millis(1), LONG, say), ends, "later");
        }
        assert!(is_ended(LONG, LONG, drop), "its thread has met a bug");
    }

    #[test]
    fn many_that_hang_are_waited_for_no_longer_than_two() {
        let patience = Patience::new();
        assert_eq!(patience.moment(), MOMENT);
        patience.waited(MOMENT + MOMENT / 2);
        assert_eq!(patience.moment(), MOMENT / 2);
        patience.waited(MOMENT);
        assert_eq!(patience.moment(), LEAST);
    }

    #[test]
    fn one_that_hangs_is_not_waited_for_and_is_ended_at_last() {
        let mut hangs = None;
        let moment = Duration::from_millis(1);
        assert!(is_ended(moment, 20 * moment, |resumed| hangs = Some(resumed)));
    }
}
