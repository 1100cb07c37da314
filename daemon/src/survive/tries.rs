//! How many daemons have ended over the same thing: what kills each that takes it up must not do so for ever.
//!
//! A request whose handling ends the daemon is sent again to the next one, and a file whose restoring does is found again: all
//! nodes would die with it each time. So what is taken up *again* stands in a small table, in the store, as long as a thread
//! works on it. What stands there when the next daemon reads the table was being worked on when the one before ended. That
//! may be chance (somebody's SIGKILL), so it takes many of those ([`MOST`]); a daemon that ended by a fault of its own (SIGSEGV,
//! SIGABRT...: whoever starts us says so) counts as half of them.
//!
//! Of several things that were in hand when a daemon ended by its own fault one is to blame. So the next one takes them up one
//! at a time, over all nodes: then it is that one alone, and the others are not told of what they have not done.
//!
//! A request that nobody has had before costs nothing here.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Inheritance, Kept, Store};

/// Ends of daemons with the same thing in hand after which it is not taken up any more.
const MOST: u32 = 16;
/// For so many counts an end by a fault of the daemon's own.
const FAULT: u32 = MOST / 2;
/// Things in hand at the same time: the threads of a channel. What finds no room is not counted.
const ROWS: usize = 128;

/// Daemons that have not seen a thing come again, after which it is forgotten. One that ends while files are taken up has seen no
/// request.
const UNSEEN: u16 = 8;
/// How long one of those that may be to blame waits for another: that may hang, and is none of its affair.
const TURN: Duration = Duration::from_secs(2);

/// How the daemon before us has ended, in the environment: `SEGV`. The keeper sets it.
pub const ENDED_BY: &str = "VIDCOMPAT_ENDED_BY";
/// The same of systemd, which tells only what runs behind a daemon (`ExecStopPost=`, see systemd.exec(5)).
const ENDED_BY_FILE: &str = "/run/vidcompat/ended-by";
/// Signals that a process gets by what it does itself, or by its watchdog.
const FAULTS: [&str; 8] = ["SEGV", "BUS", "ABRT", "ILL", "FPE", "SYS", "TRAP", "STKFLT"];

/// What is taken up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A request, by the number that it had first.
    Request(u64),
    /// An open file, by its handle.
    File(u64),
}

impl What {
    fn key(self) -> (u16, u64) {
        match self {
            Self::Request(unique) => (1, unique),
            Self::File(fh) => (2, fh),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct Row {
    number: u64,
    /// Daemons that have ended with it in hand, and the one that has it now.
    ends: u32,
    /// 0: the row is free.
    kind: u16,
    /// Daemons that have not taken it up, this one included. 0: this one has.
    unseen: u16,
}

/// The table of a node.
#[derive(Debug)]
pub struct Tries {
    file: File,
    rows: Mutex<[Row; ROWS]>,
    turns: &'static Turns,
    _kept: Option<Kept>,
}

impl Tries {
    /// That of `node`, from what a daemon before us has `left` of it; or a new one.
    ///
    /// # Errors
    /// There is no memory, or no room in the store.
    pub fn of_node(store: &Arc<Store>, node: &str, left: &mut Inheritance) -> io::Result<Arc<Self>> {
        let name = format!("tries.{node}");
        let (file, kept) = match left.remove(&name) {
            Some(fd) => (File::from(fd), store.kept(&name)),
            None => {
                let file = empty()?;
                let kept = store.put(&name, &file)?;
                (file, kept)
            }
        };
        let weight = if was_fault() { FAULT } else { 1 };
        Ok(Arc::new(Self::read(file, weight, Some(kept), &TURNS)))
    }

    fn read(file: File, weight: u32, kept: Option<Kept>, turns: &'static Turns) -> Self {
        let mut rows = [Row::default(); ROWS];
        if file.read_exact_at(rows.as_mut_bytes(), 0).is_err() {
            rows = [Row::default(); ROWS];
        }
        let was_in_hand = rows.iter().any(|row| row.kind != 0);
        for row in &mut rows {
            match row.unseen {
                0 if row.kind != 0 => {
                    row.ends = row.ends.saturating_add(weight - 1);
                    row.unseen = 1;
                }
                0 => {}
                1..UNSEEN => row.unseen += 1,
                _ => *row = Row::default(),
            }
        }
        let tries = Self {
            file,
            rows: Mutex::new(rows),
            turns,
            _kept: kept,
        };
        if was_in_hand {
            tries.write(rows.as_bytes(), 0);
        }
        tries
    }

    /// As too many daemons that have ended over `what` leave it.
    #[cfg(test)]
    pub(crate) fn deadly(what: What) -> Arc<Self> {
        let tries = Self::read(empty().expect("a memfd"), 1, None, &TURNS);
        let (kind, number) = what.key();
        tries.rows()[0] = Row {
            number,
            ends: MOST,
            kind,
            unseen: 1,
        };
        Arc::new(tries)
    }

    /// `what` is in hand from now on until what is returned is dropped. `None`: too many daemons have ended over it.
    pub fn take_up(&self, what: What) -> Option<Try<'_>> {
        let (kind, number) = what.key();
        let is_it = |row: &Row| (row.kind, row.number) == (kind, number);
        let may_be_to_blame = self
            .rows()
            .iter()
            .any(|row| is_it(row) && (FAULT..MOST).contains(&row.ends));
        // Before it stands in the table: who only waits is not to blame.
        let alone = may_be_to_blame.then(|| self.turns.take(TURN));
        let mut rows = self.rows();
        let known = rows.iter().position(is_it);
        let at = known.or_else(|| rows.iter().position(|row| row.kind == 0));
        if let Some(at) = at {
            let ends = if known.is_some() { rows[at].ends } else { 0 };
            if ends >= MOST {
                return None;
            }
            rows[at] = Row {
                number,
                ends: ends + 1,
                kind,
                unseen: 0,
            };
            self.write_row(&rows, at);
        }
        Some(Try {
            tries: self,
            at,
            _alone: alone.flatten(),
        })
    }

    fn rows(&self) -> MutexGuard<'_, [Row; ROWS]> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_row(&self, rows: &[Row; ROWS], at: usize) {
        self.write(rows[at].as_bytes(), (at * size_of::<Row>()) as u64);
    }

    fn write(&self, bytes: &[u8], at: u64) {
        if let Err(error) = self.file.write_all_at(bytes, at) {
            tracing::debug!(%error, "what is taken up again is not counted");
        }
    }
}

fn empty() -> io::Result<File> {
    let file = File::from(memfd_create(c"vidcompat-tries", MFdFlags::MFD_CLOEXEC)?);
    file.set_len((ROWS * size_of::<Row>()) as u64)?;
    Ok(file)
}

/// Something in hand.
#[derive(Debug)]
#[must_use]
pub struct Try<'a> {
    tries: &'a Tries,
    at: Option<usize>,
    _alone: Option<Alone<'a>>,
}

/// Whose turn it is of all that may be to blame.
#[derive(Debug)]
struct Turns {
    is_taken: Mutex<bool>,
    is_free: Condvar,
}

/// Of this process.
static TURNS: Turns = Turns::new();

impl Turns {
    const fn new() -> Self {
        Self {
            is_taken: Mutex::new(false),
            is_free: Condvar::new(),
        }
    }

    /// `None`: the one before takes longer than `patience`.
    fn take(&self, patience: Duration) -> Option<Alone<'_>> {
        let is_taken = self.is_taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut is_taken, waited) = self
            .is_free
            .wait_timeout_while(is_taken, patience, |is_taken| *is_taken)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        *is_taken = true;
        Some(Alone(self))
    }
}

/// The turn of one.
#[derive(Debug)]
struct Alone<'a>(&'a Turns);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        *self.0.is_taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.is_free.notify_one();
    }
}

impl Drop for Try<'_> {
    fn drop(&mut self) {
        let Some(at) = self.at else { return };
        let mut rows = self.tries.rows();
        rows[at] = Row::default();
        self.tries.write_row(&rows, at);
    }
}

/// Did the daemon before us end by a fault of its own?
fn was_fault() -> bool {
    let told = std::env::var(ENDED_BY).or_else(|_| fs::read_to_string(ENDED_BY_FILE));
    told.is_ok_and(|told| FAULTS.contains(&told.trim().trim_start_matches("SIG")))
}

/// To be called behind a daemon of systemd's (`ExecStopPost=`): for the next one, as what it has ended is written down.
pub fn tell_end() {
    let (Some(status), Some(_)) = (
        std::env::var_os("EXIT_STATUS"),
        std::env::var_os("SERVICE_RESULT"),
    ) else {
        return;
    };
    // The folder is the daemon's, which has less rights than we have.
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(ENDED_BY_FILE)
        .and_then(|mut file| file.write_all(status.as_encoded_bytes()));
    if let Err(error) = written {
        tracing::debug!(%error, "how the daemon has ended is not written down");
    }
}

#[cfg(test)]
mod tests {
    use super::{FAULT, MOST, ROWS, Tries, Turns, UNSEEN, What, empty};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    /// Of another process.
    fn turns() -> &'static Turns {
        Box::leak(Box::new(Turns::new()))
    }

    /// The daemon ends as it is: nothing is put away.
    fn next(tries: Tries, weight: u32) -> Tries {
        let file = tries.file.try_clone().expect("a descriptor");
        drop(tries);
        Tries::read(file, weight, None, turns())
    }

    fn fresh() -> Tries {
        Tries::read(empty().expect("a memfd"), 1, None, turns())
    }

    fn die_with(tries: Tries, what: What, weight: u32) -> Tries {
        std::mem::forget(tries.take_up(what).expect("not too often"));
        next(tries, weight)
    }

    #[test]
    fn what_two_faults_came_of_is_not_taken_up_a_third_time() {
        let (poison, good) = (What::Request(2), What::Request(4));
        let mut tries = fresh();
        for _ in 0..MOST / FAULT {
            drop(tries.take_up(good).expect("it is answered"));
            tries = die_with(tries, poison, FAULT);
        }
        assert!(tries.take_up(poison).is_none());
        assert!(tries.take_up(good).is_some());
        assert!(tries.take_up(What::File(2)).is_some(), "that is another thing");
    }

    #[test]
    fn of_two_that_were_in_hand_when_a_fault_came_only_the_one_that_brings_it_is_given_up() {
        let (poison, good) = (What::Request(2), What::Request(4));
        let tries = fresh();
        std::mem::forget(tries.take_up(good));
        let tries = die_with(tries, poison, FAULT);
        std::thread::scope(|scope| {
            let first = tries.take_up(poison).expect("once more");
            let (taken, is_taken) = channel();
            let tries = &tries;
            scope.spawn(move || taken.send(tries.take_up(good).is_some()));
            assert!(
                is_taken.recv_timeout(Duration::from_millis(50)).is_err(),
                "it waits"
            );
            let known = tries
                .rows()
                .iter()
                .find(|row| row.number == 4)
                .map(|row| row.unseen);
            assert_eq!(known, Some(1), "and is not in hand");
            drop(first);
            assert_eq!(is_taken.recv_timeout(Duration::from_secs(20)), Ok(true));
        });
        let turns = turns();
        let taken = turns.take(Duration::ZERO).expect("nobody has it");
        assert!(
            turns.take(Duration::from_millis(1)).is_none(),
            "it takes too long"
        );
        drop(taken);
        assert!(turns.take(Duration::from_millis(1)).is_some());
    }

    #[test]
    fn somebody_who_kills_daemons_must_meet_the_same_thing_many_times() {
        let file = What::File(7);
        let mut tries = fresh();
        for _ in 0..MOST {
            tries = die_with(tries, file, 1);
        }
        assert!(tries.take_up(file).is_none());

        let mut tries = fresh();
        for _ in 0..3 * MOST {
            tries = die_with(tries, file, 1);
            drop(tries.take_up(file).expect("it was answered meanwhile"));
        }
    }

    #[test]
    fn what_does_not_come_again_leaves_its_row() {
        let mut tries = fresh();
        for round in 0..3 {
            for number in 0..ROWS as u64 {
                std::mem::forget(tries.take_up(What::Request(round * 1000 + number)));
            }
            assert!(
                tries.take_up(What::File(1)).is_some(),
                "uncounted, for it is full"
            );
            // In the lives after it nothing of it comes.
            for _ in 0..UNSEEN {
                assert!(tries.rows().iter().all(|row| row.kind != 0), "it may still");
                tries = next(tries, 1);
            }
            tries = next(tries, 1);
            assert!(tries.rows().iter().all(|row| row.kind == 0));
        }
    }
}
