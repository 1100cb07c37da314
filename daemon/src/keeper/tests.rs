//! A keeper whose daemon is this test binary again, in the role that `VC_ROLE` names.

use super::daemon::Start;
use super::messages::Messages;
use super::{Keeper, Wishes};
use crate::survive::{Inheritance, Store};
use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use sd_notify::NotifyState;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// What somebody wants of the keeper: a byte is a signal.
impl Wishes for UnixDatagram {
    fn next(&self) -> Option<Signal> {
        let mut byte = [0];
        self.recv(&mut byte).ok()?;
        Signal::try_from(i32::from(byte[0])).ok()
    }
}

/// A place for a test's files, and the keeper in it.
struct Trial {
    folder: PathBuf,
    wishes: UnixDatagram,
    wisher: UnixDatagram,
}

impl Trial {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("vidcompat-keeper-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).expect("a folder");
        let (wishes, wisher) = UnixDatagram::pair().expect("sockets");
        wishes.set_nonblocking(true).expect("a socket");
        Self {
            folder,
            wishes,
            wisher,
        }
    }

    fn keeper(&self, role: &str) -> Keeper {
        let messages = Messages::new(&self.folder).expect("a socket");
        let args = [
            "vidcompatd",
            "--ignored",
            "--exact",
            "keeper::tests::stand_in",
            "--nocapture",
        ];
        let start = Start::new(
            std::env::current_exe().expect("a path"),
            args.map(OsString::from),
            &messages.path(),
            100,
        );
        let start = start.with("VC_ROLE", role).with("VC_FOLDER", &self.folder);
        Keeper::new(messages, start, 100)
    }

    /// What the stand-ins have written down, one line for each.
    fn diary(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.join("diary")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn wait_for(&self, lines: usize) {
        let begun = Instant::now();
        while self.diary().len() < lines {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", self.diary());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn note(line: &str) {
    let path = Path::new(&std::env::var_os("VC_FOLDER").expect("a folder")).join("diary");
    let mut diary = File::options()
        .create(true)
        .append(true)
        .open(path)
        .expect("a diary");
    diary.write_all(format!("{line}\n").as_bytes()).expect("room");
}

fn memfd(text: &str) -> OwnedFd {
    let fd = nix::sys::memfd::memfd_create("kept", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    let mut file = File::from(fd.expect("a memfd"));
    file.write_all(text.as_bytes()).expect("room");
    file.into()
}

fn contents(fd: BorrowedFd<'_>) -> String {
    let mut file = File::from(fd.try_clone_to_owned().expect("a descriptor"));
    let mut text = String::new();
    file.rewind().expect("a file");
    file.read_to_string(&mut text).expect("text");
    text
}

/// No test: the daemon of the others.
#[test]
#[ignore = "the tests of the keeper start it"]
fn stand_in() {
    let Ok(role) = std::env::var("VC_ROLE") else {
        return;
    };
    let store = Store::of_starter();
    let inheritance = Inheritance::take();
    let got: Vec<_> = inheritance
        .beginning("")
        .map(|name| format!("{name}={}", contents(inheritance.get(name).expect("it is there"))))
        .collect();
    note(&format!("{} {}", std::process::id(), got.join(" ")));
    let ready = || sd_notify::notify(&[NotifyState::Ready]).expect("a keeper");
    let put = |name: &str, text: &str| store.put(name, memfd(text)).expect("a keeper").leave();
    match role.as_str() {
        // Each stores one more, and is killed at that moment; the fourth removes one, and ends.
        "heir" => match got.len() {
            3 => {
                drop(store.kept("record.b"));
                put("record.a", "again");
                ready();
                raise(Signal::SIGKILL).expect("a signal");
            }
            2 if got[0] == "record.a=again" => std::process::exit(0),
            _ => {
                ready();
                put(
                    ["record.a", "record.b", "record.c"][got.len()],
                    &format!("{}", got.len()),
                );
                raise(Signal::SIGKILL).expect("a signal");
            }
        },
        "stillborn" => std::process::exit(3),
        // The first is ready, and no other.
        "doomed" => {
            if got.is_empty() {
                put("device", "x");
                ready();
                raise(Signal::SIGSEGV).expect("a signal");
            }
            std::process::exit(4);
        }
        "patient" => {
            ready();
            loop {
                thread::sleep(Duration::from_secs(1));
            }
        }
        role => panic!("{role}"),
    }
}

#[test]
fn what_is_stored_outlives_the_daemon_also_when_it_dies_right_after() {
    let trial = Trial::new("heir");
    assert_eq!(trial.keeper("heir").keep(&trial.wishes), 0);
    let diary = trial.diary();
    let got: Vec<_> = diary
        .iter()
        .map(|line| line.split_once(' ').expect("two parts").1)
        .collect();
    assert_eq!(
        got,
        [
            "",
            "record.a=0",
            "record.a=0 record.b=1",
            "record.a=0 record.b=1 record.c=2",
            "record.a=again record.c=2",
        ]
    );
    let open: Vec<_> = fs::read_dir(&trial.folder).expect("a folder").flatten().collect();
    assert_eq!(open.len(), 1, "the diary alone: {open:?}");
}

#[test]
fn a_daemon_that_cannot_begin_is_not_begun_again() {
    let trial = Trial::new("stillborn");
    assert_eq!(trial.keeper("stillborn").keep(&trial.wishes), 3);
    assert_eq!(trial.diary().len(), 1);
}

#[test]
fn a_daemon_whose_heirs_cannot_begin_is_given_up_and_its_files_are_let_go() {
    let trial = Trial::new("doomed");
    let mut keeper = trial.keeper("doomed");
    let begun = Instant::now();
    assert_eq!(keeper.keep(&trial.wishes), 4);
    assert!(begun.elapsed() >= Duration::from_millis(700), "pauses that grow");
    assert_eq!(trial.diary().len(), 1 + 10);
}

#[test]
fn the_daemon_is_ended_with_the_keeper_and_started_again_when_it_is_killed() {
    let trial = Trial::new("patient");
    let mut keeper = trial.keeper("patient");
    let ended = thread::scope(|scope| {
        let kept = scope.spawn(|| keeper.keep(&trial.wishes));
        trial.wait_for(1);
        let pid = |line: &str| Pid::from_raw(line.split(' ').next().expect("a word").parse().expect("a pid"));
        let first = pid(&trial.diary()[0]);
        kill(first, Signal::SIGKILL).expect("it lives");
        trial.wait_for(2);
        let second = pid(&trial.diary()[1]);
        assert_ne!(first, second);
        trial.wisher.send(&[Signal::SIGTERM as u8]).expect("room");
        let ended = kept.join().expect("no panic");
        assert!(kill(second, None).is_err(), "it has ended, too");
        ended
    });
    assert_eq!(ended, 0);
}

#[test]
fn a_signal_that_ends_us_also_ends_a_pause() {
    let trial = Trial::new("pause");
    let mut keeper = trial.keeper("patient");
    trial.wisher.send(&[Signal::SIGHUP as u8]).expect("room");
    assert!(!keeper.pause(Duration::from_millis(10), &trial.wishes));
    trial.wisher.send(&[Signal::SIGINT as u8]).expect("room");
    let begun = Instant::now();
    assert!(keeper.pause(Duration::from_secs(30), &trial.wishes));
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(keeper.messages.as_fd().try_clone_to_owned().is_ok());
}
