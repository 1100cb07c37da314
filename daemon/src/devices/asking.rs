//! Questions to drivers, which may never answer. Each is put on a thread of its own, and whoever asks waits no longer than he
//! likes.
//!
//! Nobody takes a thread out of a driver, so one that hangs stays there. It holds nothing that others wait for, and there is
//! one for each thing that is asked about, and not one for each time that it is asked.

use std::collections::HashMap;
use std::fmt::{self, Debug, Formatter};
use std::hash::Hash;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// What the threads are called (15 bytes at most): where one of them is, is nobody else's affair.
pub const ASKING: &str = "asks-a-driver";

/// Questions that are under way, by what they are about.
pub struct Questions<K, T> {
    under_way: HashMap<K, Question<T>>,
    /// Told of each answer that nobody waits for any more.
    answered: Arc<Notify>,
}

struct Question<T> {
    answer: Receiver<T>,
    /// Who has asked has not waited.
    is_late: Arc<AtomicBool>,
}

impl<T> Question<T> {
    /// `Err(Timeout)`: there is none before `until`, and it will be told of when there is one.
    fn answer(&self, until: Instant) -> Result<T, RecvTimeoutError> {
        let answer = self
            .answer
            .recv_timeout(until.saturating_duration_since(Instant::now()));
        if !matches!(answer, Err(RecvTimeoutError::Timeout)) {
            return answer;
        }
        self.is_late.store(true, Ordering::SeqCst);
        // It may have come before it could be seen that it is late.
        self.answer.recv_timeout(Duration::ZERO)
    }
}

impl<K: Debug, T> Debug for Questions<K, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.under_way.keys()).finish()
    }
}

impl<K: Eq + Hash, T: Send + 'static> Questions<K, T> {
    /// None so far. `answered` is told of each answer that comes after who asked has stopped waiting.
    #[must_use]
    pub fn new(answered: Arc<Notify>) -> Self {
        Self {
            under_way: HashMap::new(),
            answered,
        }
    }

    /// Asks, unless that very thing is being asked already. `false`: it is, or there is no thread left.
    pub fn begin(&mut self, about: K, ask: impl FnOnce() -> T + Send + 'static) -> bool {
        if self.under_way.contains_key(&about) {
            return false;
        }
        let (answered, is_late) = (Arc::clone(&self.answered), Arc::<AtomicBool>::default());
        let late = Arc::clone(&is_late);
        let begun = begin(ask, move || {
            if late.load(Ordering::SeqCst) {
                answered.notify_one();
            }
        });
        let begun = begun.inspect_err(|error| tracing::warn!(%error, "no thread is left to ask a driver"));
        begun.is_ok_and(|answer| {
            self.under_way.insert(about, Question { answer, is_late });
            true
        })
    }

    /// The answer, if there is one before `until`: it is given once, and then the question is not under way any more.
    pub fn answer(&mut self, about: &K, until: Instant) -> Option<T> {
        let answer = self.under_way.get(about)?.answer(until);
        // Whoever was to answer has panicked: it may be asked again.
        if !matches!(answer, Err(RecvTimeoutError::Timeout)) {
            self.under_way.remove(about);
        }
        answer.ok()
    }

    /// Forgets the others: their answers go nowhere.
    pub fn retain(&mut self, is_wanted: impl Fn(&K) -> bool) {
        self.under_way.retain(|about, _| is_wanted(about));
    }
}

/// What `ask` says within `patience`.
///
/// # Errors
/// It has not said anything, or there is no thread left.
pub fn ask<T: Send + 'static>(
    patience: Duration,
    ask: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match begin(ask, || {})?.recv_timeout(patience) {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "its driver hangs: it has said nothing for {} s",
                patience.as_secs()
            ),
        )),
    }
}

fn begin<T: Send + 'static>(
    ask: impl FnOnce() -> T + Send + 'static,
    then: impl FnOnce() + Send + 'static,
) -> io::Result<Receiver<T>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name(ASKING.to_owned()).spawn(move || {
        // Nobody may want to know any more.
        drop(sender.send(ask()));
        then();
    })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::{Questions, ask};
    use std::io;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, mpsc};
    use std::time::{Duration, Instant};
    use tokio::sync::Notify;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(30);

    #[tokio::test]
    async fn what_hangs_is_asked_once_and_its_answer_is_told_of_when_it_comes() {
        let answered = Arc::new(Notify::new());
        let mut questions = Questions::new(Arc::clone(&answered));
        let (let_go, held) = mpsc::channel::<()>();
        let asked = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&asked);
        assert!(questions.begin("a", move || {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = held.recv();
            7
        }));
        assert!(questions.begin("b", || 8));
        assert_eq!(questions.answer(&"b", Instant::now() + LONG), Some(8));
        // Who has waited for it need not be told.
        assert!(tokio::time::timeout(SHORT, answered.notified()).await.is_err());
        let begun = Instant::now();
        for _ in 0..3 {
            assert!(!questions.begin("a", || unreachable!("asked twice")));
            assert_eq!(questions.answer(&"a", Instant::now() + SHORT), None);
        }
        assert!(begun.elapsed() < LONG / 2);
        drop(let_go);
        tokio::time::timeout(LONG, answered.notified())
            .await
            .expect("told");
        assert_eq!(questions.answer(&"a", Instant::now()), Some(7));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(questions.begin("a", || 9), "it may be asked again");
        questions.retain(|about| *about != "a");
        assert_eq!(questions.answer(&"a", Instant::now() + LONG), None);
    }

    #[test]
    fn a_single_question_ends_in_time_whatever_the_driver_does() {
        assert_eq!(ask(LONG, || Ok(3)).ok(), Some(3));
        let (let_go, held) = mpsc::channel::<()>();
        let hangs = ask(SHORT, move || -> io::Result<()> {
            let _ = held.recv();
            Ok(())
        });
        assert_eq!(hangs.expect_err("no answer").kind(), io::ErrorKind::TimedOut);
        drop(let_go);
    }
}
