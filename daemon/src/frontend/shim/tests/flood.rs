//! Many clients at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use vidcompat_proto::shim::{Answer, Ask};

use super::super::crowd::Limits;
use super::clients::{Client, LIMITS, SLOW, Served, eventually};

const MAP: Ask = Ask::Map {
    offset: 0,
    length: 4096,
    prot: 3,
    flags: 1,
};

/// All that the kernel lets us have.
fn many_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard one");
}

#[test]
fn thousands_of_connections_of_one_user_leave_the_server_with_a_few() {
    many_files();
    let served = Served::new("thousands", LIMITS);
    // None of them is closed by its client.
    let begun = Instant::now();
    let clients: Vec<_> = (0..3000).map(|_| served.connect()).collect();
    let connected = begun.elapsed();
    assert!(connected < Duration::from_secs(5), "{connected:?}");
    eventually(|| served.refused() >= 3000 - LIMITS.of_user);
    assert!(served.connections() <= LIMITS.of_user);
    // All of them are told the end, those that were served when they have been idle for long enough.
    assert!(clients.iter().all(Client::is_ended));
    served.settle();
    assert_eq!(served.connect().ask(MAP), Some(Answer::Map { offset: 1 }));
}

#[test]
fn who_connects_while_another_connects_without_end_is_served_soon() {
    // As if each connection were another user's: nobody is over his own limit.
    let limits = Limits {
        of_user: 4096,
        ..Limits::default()
    };
    let served = Served::new("spinning", limits);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut kept = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    // What was pushed out is connected anew.
                    kept.push(Client::to(&served.path));
                    kept.truncate(100);
                }
            });
        }
        let mut waits = Vec::new();
        let mut tries = 0;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            let asked = Instant::now();
            tries += 1;
            // Pushed out before it was heard, at times: the others' fresh connections are as good as this.
            if served.connect().ask(MAP).is_some() {
                waits.push(asked.elapsed());
            }
        }
        stop.store(true, Ordering::Relaxed);
        waits.sort_unstable();
        let (median, longest) = (waits.get(waits.len() / 2), waits.last());
        let (median, longest) = (median.expect("somebody is served"), longest.expect("the same"));
        assert!(2 * waits.len() >= tries, "{} of {tries} were served", waits.len());
        // Of the shim's own patience, with room for a machine that has other things to do.
        assert!(
            *median < Duration::from_millis(250) && *longest < Duration::from_secs(4),
            "{median:?}, {longest:?}"
        );
    });
}

#[test]
fn questions_beyond_the_users_share_wait_and_are_let_go() {
    let served = Served::new("share", LIMITS);
    served.answers.hold();
    let clients: Vec<_> = (0..8).map(|_| served.connect()).collect();
    for client in &clients {
        client
            .send(&SLOW.encode(super::clients::TOKEN), &[])
            .expect("a reader");
    }
    let waiting = || served.answers.waiting.load(Ordering::SeqCst);
    eventually(|| waiting() == LIMITS.asking);
    // The others have waited for too long.
    eventually(|| served.connections() == LIMITS.asking);
    assert_eq!(waiting(), LIMITS.asking);
    served.answers.let_go();
    let answered = clients.iter().filter(|client| client.receive().is_some()).count();
    assert_eq!(answered, LIMITS.asking);
}

#[test]
fn a_client_that_goes_while_it_is_answered_leaves_nothing() {
    let served = Served::new("gone", LIMITS);
    served.answers.hold();
    for _ in 0..LIMITS.asking {
        let client = served.connect();
        client
            .send(&SLOW.encode(super::clients::TOKEN), &[])
            .expect("a reader");
    }
    eventually(|| served.answers.waiting.load(Ordering::SeqCst) == LIMITS.asking);
    served.answers.let_go();
    served.settle();
    assert_eq!(served.connect().ask(MAP), Some(Answer::Map { offset: 1 }));
}
