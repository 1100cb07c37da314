//! What became of restarts, for whoever asks for the status: how many daemons there were, which open files went on, and why
//! others did not.
//!
//! It is written down beside what outlives us, so it is about all daemons since somebody began to keep what they had, as
//! long as one took over from the other. Where nothing outlives us there is nothing to tell.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::observe::model;
use crate::survive::{Inheritance, Record, RecordError, Store};

/// In the store.
const NAME: &str = "chronicle";
/// Reasons that are remembered, the last ones.
const REASONS: usize = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Chronicle {
    told: Mutex<model::Survival>,
    /// For the daemon after us.
    record: Option<Record>,
    begun: Instant,
}

impl Chronicle {
    /// Of this daemon, and of those before it if it takes over from one. `outlives_us`: does anything?
    pub(super) fn begin(store: &Arc<Store>, outlives_us: bool, inheritance: &mut Inheritance) -> Arc<Self> {
        let takes_over = inheritance.of_kind("channel").next().is_some();
        let left = inheritance.remove(NAME).map(|file| {
            let kept = store.kept(NAME);
            (Record::open(file), kept)
        });
        let mut told = model::Survival::default();
        let mut record = None;
        if let Some((opened, kept)) = left {
            match opened {
                Ok((open, text)) if outlives_us => {
                    if takes_over {
                        told = before(&text);
                    }
                    record = Some(open);
                    kept.leave();
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "what became of daemons before this one is not known"),
            }
        }
        if takes_over {
            // It is not in what a daemon before us has left that it has ended.
            told.restarts += 1;
        }
        if outlives_us {
            told.kept_by = Some(keeper().to_owned());
            record = record.or_else(|| put(store).inspect_err(unwritten).ok());
        }
        let chronicle = Self {
            told: Mutex::new(told),
            record,
            begun: Instant::now(),
        };
        chronicle.write(&chronicle.lock());
        Arc::new(chronicle)
    }

    fn lock(&self) -> MutexGuard<'_, model::Survival> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many open files of a node went on, and these did not, for these reasons. From now on the node is served again.
    pub(super) fn restored(&self, files: usize, lost: Vec<String>) {
        let mut told = self.lock();
        told.restored += count(files);
        told.took_us = Some(micros(self.begun.elapsed()));
        self.give_up(told, lost);
    }

    /// So many open files did not go on, all for one reason.
    pub(super) fn lost(&self, files: usize, why: &str) {
        if files > 0 {
            self.give_up(self.lock(), vec![why.to_owned(); files]);
        }
    }

    fn give_up(&self, mut told: MutexGuard<'_, model::Survival>, lost: Vec<String>) {
        told.given_up += count(lost.len());
        for why in lost {
            // The same once, where it was last.
            told.reasons.retain(|reason| *reason != why);
            told.reasons.push(why);
        }
        let surplus = told.reasons.len().saturating_sub(REASONS);
        told.reasons.drain(..surplus);
        self.write(&told);
    }

    /// A request was sent again.
    pub(super) fn resent(&self) {
        let mut told = self.lock();
        told.resent += 1;
        self.write(&told);
    }

    /// All of it.
    pub(super) fn told(&self) -> model::Survival {
        self.lock().clone()
    }

    fn write(&self, told: &model::Survival) {
        let Some(record) = &self.record else { return };
        let written = record.commit(|mut bytes| match serde_json::to_writer(&mut bytes, told) {
            Ok(()) => bytes,
            Err(_) => Vec::new(),
        });
        if let Err(error) = written {
            unwritten(&error);
        }
    }
}

/// What a daemon before us has written; one of another version has written what we understand of it.
fn before(text: &[u8]) -> model::Survival {
    let told: Result<model::Survival, _> = serde_json::from_slice(text);
    model::Survival {
        took_us: None,
        ..told.unwrap_or_default()
    }
}

fn put(store: &Arc<Store>) -> Result<Record, RecordError> {
    let record = Record::create("vidcompat-chronicle")?;
    store.put(NAME, &record)?.leave();
    Ok(record)
}

fn unwritten(error: &RecordError) {
    tracing::debug!(%error, "the next daemon will not know what became of this one");
}

/// Who keeps our files.
fn keeper() -> &'static str {
    // systemd.exec(5): every process that it starts has it, but the keeper does not hand it on.
    let socket = std::env::var("NOTIFY_SOCKET").unwrap_or_default();
    match socket.contains("/systemd/") {
        true => "systemd",
        false => "keeper",
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Chronicle, NAME, REASONS};
    use crate::survive::{Inheritance, Store};
    use std::fs::File;
    use std::os::fd::{AsFd, OwnedFd};

    fn channel() -> (String, OwnedFd) {
        let null = File::open("/dev/null").expect("a null device");
        ("channel.video64".to_owned(), null.into())
    }

    /// What is left of `chronicle` when its daemon is killed.
    fn left(chronicle: &Chronicle) -> (String, OwnedFd) {
        let record = chronicle.record.as_ref().expect("a record");
        let file = record.as_fd().try_clone_to_owned().expect("a descriptor");
        (NAME.to_owned(), file)
    }

    #[test]
    fn the_next_daemon_goes_on_counting_and_one_that_takes_nothing_over_begins_anew() {
        let store = Store::none();
        let begin = |left: Vec<(String, OwnedFd)>| {
            let mut inheritance: Inheritance = left.into_iter().collect();
            let chronicle = Chronicle::begin(&store, true, &mut inheritance);
            assert!(inheritance.get(NAME).is_none(), "nobody else gives it up");
            chronicle
        };
        let first = begin(Vec::new());
        assert_eq!((first.told().restarts, first.told().took_us), (0, None));
        let second = begin(vec![channel(), left(&first)]);
        second.restored(2, vec!["it is spoilt".to_owned()]);
        second.resent();
        let told = second.told();
        assert_eq!(
            (told.restarts, told.restored, told.given_up, told.resent),
            (1, 2, 1, 1)
        );
        assert!(told.took_us.is_some());
        let third = begin(vec![channel(), left(&second)]);
        third.lost(1, "the device has gone");
        third.restored(1, Vec::new());
        let told = third.told();
        assert_eq!(
            (told.restarts, told.restored, told.given_up, told.resent),
            (2, 3, 2, 1)
        );
        assert_eq!(told.reasons, ["it is spoilt", "the device has gone"]);
        assert_eq!(begin(vec![left(&third)]).told().restarts, 0);
        let spoilt = begin(vec![channel(), (NAME.to_owned(), channel().1)]);
        assert_eq!((spoilt.told().restarts, spoilt.told().restored), (1, 0));
    }

    #[test]
    fn where_nothing_outlives_us_nothing_is_told() {
        let chronicle = Chronicle::begin(&Store::none(), false, &mut Inheritance::default());
        assert_eq!(chronicle.told(), crate::observe::model::Survival::default());
        assert!(chronicle.record.is_none());
    }

    #[test]
    fn a_thousand_reasons_are_the_last_few() {
        let chronicle = Chronicle::begin(&Store::none(), true, &mut Inheritance::default());
        for number in 0..1000 {
            chronicle.restored(0, vec![format!("reason {number}"), "the same".to_owned()]);
        }
        let told = chronicle.told();
        assert_eq!((told.given_up, told.reasons.len()), (2000, REASONS));
        assert_eq!(told.reasons[REASONS - 1], "the same");
        assert_eq!(told.reasons[REASONS - 2], "reason 999");
    }
}
