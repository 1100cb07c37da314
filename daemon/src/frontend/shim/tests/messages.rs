//! One client at a time: what is answered, what is not, and that the next one is served all the same.

use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::io::Errno as Failure;
use rustix::net::{Shutdown, shutdown};
use vidcompat_proto::Errno;
use vidcompat_proto::shim::{Answer, Ask, MESSAGE_BYTES, Move, Outcome};

use super::super::Peer;
use super::clients::{Client, LIMITS, Served, TOKEN};

const MAP: Ask = Ask::Map {
    offset: 4096,
    length: 8192,
    prot: 3,
    flags: 1,
};
const IS_LENT: Ask = Ask::IsLent {
    client_addr: 0x1000,
    length: 4096,
};

/// The server is there, and does its work.
fn serves(served: &Served) {
    assert_eq!(served.connect().ask(MAP), Some(Answer::Map { offset: 4097 }));
}

#[test]
fn questions_are_answered_one_after_the_other_with_their_files() {
    let served = Served::new("answers", LIMITS);
    let client = served.connect();
    for (ask, answer) in [
        (MAP, Answer::Map { offset: 4097 }),
        (Ask::Fetch { ticket: 0 }, Answer::Errno(Errno::ENOENT)),
        (Ask::Fetch { ticket: 9 }, Answer::File { close_on_exec: true }),
        (IS_LENT, Answer::Yes),
        (Ask::NextMove, Answer::Nothing),
        (
            Ask::Moved {
                client_addr: 1,
                length: 2,
                outcome: Outcome::Done,
            },
            Answer::Nothing,
        ),
    ] {
        assert_eq!(client.ask(ask), Some(answer), "{ask:?}");
    }
    let us = Peer {
        pid: Some(std::process::id().cast_signed()),
        uid: rustix::process::geteuid().as_raw(),
    };
    let asked = served.answers.asked.lock().expect("a lock");
    assert_eq!(asked.len(), 6);
    assert!(asked.iter().all(|(peer, _)| *peer == us), "{asked:?}");
}

#[test]
fn a_token_of_nobody_is_told_so_and_asks_once_but_for_what_was_lent() {
    let served = Served::new("token", LIMITS);
    let client = served.connect();
    let mut wrong = TOKEN;
    wrong[15] ^= 1;
    for _ in 0..3 {
        client.send(&IS_LENT.encode(wrong), &[]).expect("a reader");
        let (answer, _) = client.receive().expect("the connection stays");
        assert_eq!(answer, Answer::Errno(Errno::ENOENT));
    }
    client.send(&MAP.encode(wrong), &[]).expect("a reader");
    let (answer, file) = client.receive().expect("an answer");
    assert!(answer == Answer::Errno(Errno::ENOENT) && file.is_none());
    assert!(client.is_ended());
    assert!(served.answers.asked.lock().expect("a lock").is_empty());
    serves(&served);
}

#[test]
fn messages_of_another_size_end_the_connection() {
    let served = Served::new("sizes", LIMITS);
    let whole = MAP.encode(TOKEN);
    let mut sizes: Vec<usize> = (0..MESSAGE_BYTES).collect();
    sizes.extend([65, 128, 4096, 65536]);
    for size in sizes {
        let mut message = whole.to_vec();
        message.resize(size, 0);
        let client = served.connect();
        client.send(&message, &[]).expect("a reader");
        assert!(client.is_ended(), "{size} bytes");
        served.settle();
    }
    assert!(served.answers.asked.lock().expect("a lock").is_empty());
    serves(&served);
}

#[test]
fn another_version_is_answered_in_ours_and_an_unknown_kind_as_an_unknown_ioctl() {
    let served = Served::new("versions", LIMITS);
    let said = |at: usize, value: u16| {
        let mut message = MAP.encode(TOKEN);
        message[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        let client = served.connect();
        client.send(&message, &[]).expect("a reader");
        // `receive` has decoded it as one of our version.
        let answer = client.receive().map(|(answer, _)| answer);
        assert!(client.is_ended());
        answer
    };
    assert_eq!(said(4, 2), Some(Answer::Errno(Errno::from_raw(libc::EPROTO))));
    assert_eq!(said(4, 0), Some(Answer::Errno(Errno::from_raw(libc::EPROTO))));
    assert_eq!(said(6, 999), Some(Answer::Errno(Errno::ENOTTY)));
    // An answer is no question.
    assert_eq!(said(6, 107), Some(Answer::Errno(Errno::ENOTTY)));
    serves(&served);
}

#[test]
fn files_that_come_along_are_neither_kept_nor_a_reason_not_to_answer() {
    let served = Served::new("files", LIMITS);
    let folder = fs::File::open("/").expect("a folder");
    let (one, other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let before = our_files();
    for _ in 0..20 {
        let client = served.connect();
        let mut files = vec![folder.as_fd(), one.as_fd(), other.as_fd(), client.0.as_fd()];
        files.extend([one.as_fd(); 20]);
        match client.send(&MAP.encode(TOKEN), &files) {
            Ok(()) => assert_eq!(
                client.receive().expect("an answer").0,
                Answer::Map { offset: 4097 }
            ),
            // Linux 6.16 and later. (Who never asks may still be waiting to be let in when all others have gone.)
            Err(error) => {
                assert_eq!(error, Failure::PERM);
                assert_eq!(client.ask(MAP), Some(Answer::Map { offset: 4097 }));
            }
        }
    }
    served.settle();
    assert!(our_files() <= before, "nothing of what was sent is open");
    serves(&served);
}

fn our_files() -> usize {
    // Other tests run in this process: those of the server are all that is counted.
    let links = fs::read_dir("/proc/self/fd").expect("ours");
    links
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.as_os_str() == "/")
        .count()
}

#[test]
fn who_takes_no_answers_is_let_go() {
    let served = Served::new("untaken", LIMITS);
    let client = served.connect();
    let begun = Instant::now();
    let mut sent = 0;
    loop {
        match client.send(&MAP.encode(TOKEN), &[]) {
            Ok(()) => sent += 1,
            Err(Failure::AGAIN) => std::thread::yield_now(),
            Err(error) => break assert!(matches!(error, Failure::PIPE | Failure::CONNRESET), "{error}"),
        }
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{sent} questions without end"
        );
    }
    // Not by the time that it may be idle: by the room for answers.
    let mut answers = 0;
    while client.receive().is_some() {
        answers += 1;
    }
    assert!(
        (1..=16).contains(&answers),
        "{answers} answers with files in flight"
    );
    serves(&served);
}

#[test]
fn questions_without_end_have_one() {
    let served = Served::new("endless", LIMITS);
    let client = served.connect();
    let mut answered = 0;
    while client.ask(Ask::NextMove).is_some() {
        answered += 1;
        assert!(answered <= 10_000);
    }
    assert!(answered > 1000, "{answered}");
    serves(&served);
}

#[test]
fn half_a_connection_is_served_as_far_as_it_goes() {
    let served = Served::new("halves", LIMITS);
    let client = served.connect();
    client.send(&MAP.encode(TOKEN), &[]).expect("a reader");
    shutdown(&client.0, Shutdown::Write).expect("a socket");
    assert_eq!(
        client.receive().expect("an answer").0,
        Answer::Map { offset: 4097 }
    );
    assert!(client.is_ended());
    let client = served.connect();
    shutdown(&client.0, Shutdown::Read).expect("a socket");
    // It may be let go of before it has said anything.
    let _ = client.send(&MAP.encode(TOKEN), &[]);
    served.settle();
    serves(&served);
}

#[test]
fn who_says_nothing_is_let_go_after_a_while() {
    let served = Served::new("silent", LIMITS);
    let (client, begun) = (served.connect(), Instant::now());
    assert_eq!(client.ask(Ask::NextMove), Some(Answer::Nothing));
    assert!(client.is_ended());
    let took = begun.elapsed();
    assert!(took >= LIMITS.idle && took < 5 * LIMITS.idle, "{took:?}");
}

#[test]
fn with_the_daemon_the_connections_and_the_path_go() {
    let mut served = Served::new("end", LIMITS);
    let client = served.connect();
    assert_eq!(client.ask(Ask::NextMove), Some(Answer::Nothing));
    served.end();
    assert!(client.is_ended());
    assert!(matches!(Client::to(&served.path), Err(Failure::NOENT)));
}

#[test]
fn any_bytes_are_answered_as_they_decode_or_end_the_connection() {
    let served = Served::new("random", LIMITS);
    // A header of ours in front of half of them, else none would get beyond it.
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..200),
        (0u16..8, any::<bool>(), proptest::collection::vec(any::<u8>(), 40)).prop_map(
            |(kind, ours, words)| {
                let mut message = Ask::NextMove.encode(if ours { TOKEN } else { [0; 16] }).to_vec();
                message[6..8].copy_from_slice(&kind.to_ne_bytes());
                message[24..].copy_from_slice(&words);
                message
            }
        ),
    ];
    proptest!(ProptestConfig::with_cases(500), |(bytes in bytes)| {
        let client = served.connect();
        client.send(&bytes, &[]).expect("a reader");
        let answer = client.receive();
        prop_assert_eq!(answer.is_some(), bytes.len() == MESSAGE_BYTES && bytes.starts_with(b"vidc"));
        if let Some((answer, _)) = answer {
            let moved = matches!(answer, Answer::Move(Move::Adopt { .. } | Move::GiveBack { .. }));
            prop_assert!(!moved, "nobody has anything to move");
        }
    });
    serves(&served);
}
