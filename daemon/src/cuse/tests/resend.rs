//! Requests that the kernel sends again, to a daemon that was not there the first time.

use std::os::fd::AsRawFd;
use std::sync::mpsc;

use nix::sys::socket::{Shutdown, shutdown};
use polyfuse_kernel::{FUSE_INTERRUPT, FUSE_IOCTL, FUSE_OPEN, FUSE_RELEASE};
use polyfuse_kernel::{fuse_interrupt_in, fuse_ioctl_in, fuse_ioctl_out, fuse_open_out, fuse_release_in};

use super::{Answer, PATIENCE, Served, open_in, pair};
use crate::cuse::Operation;
use crate::survive::{Tries, What};

/// `FUSE_UNIQUE_RESEND`
const AGAIN: u64 = 1 << 63;

#[test]
fn asking_for_them_is_a_notification_without_a_body() {
    let (kernel, channel) = pair();
    channel.resend().expect("a channel");
    let said = Answer {
        error: 7,
        unique: 0,
        payload: vec![],
    };
    assert_eq!(kernel.answer(), said);
}

#[test]
fn a_request_that_comes_again_is_known_and_answered_by_the_number_that_it_has_then() {
    let served = Served::new();
    for (unique, again) in [(2 | AGAIN, true), (4, false), (u64::MAX ^ 1, true)] {
        served.next(move |request, _| {
            let Operation::Open { reply, .. } = request.operation else {
                panic!("an OPEN")
            };
            assert_eq!((reply.is_resent(), reply.unique()), (again, unique));
            reply.opened(7);
        });
        served.kernel.send(FUSE_OPEN, unique, &open_in(2), &[]);
        let answer = served.kernel.answer();
        assert_eq!((answer.error, answer.unique), (0, unique));
        assert_eq!(answer.body::<fuse_open_out>().fh, 7);
    }
    served.end();
}

/// The second daemon has not answered either: the number stays what it was when it came the second time.
#[test]
fn a_request_that_comes_a_third_time_is_as_one_that_comes_a_second_time() {
    for _ in 0..2 {
        let served = Served::new();
        let (kept, keep) = mpsc::channel();
        served.next(move |request, turn| {
            let Operation::Release { fh: 9, reply } = request.operation else {
                panic!("a RELEASE")
            };
            assert!(reply.is_resent() && turn.pass());
            kept.send(reply).expect("kept");
        });
        let body = fuse_release_in {
            fh: 9,
            ..fuse_release_in::default()
        };
        served.kernel.send(FUSE_RELEASE, 2 | AGAIN, &body, &[]);
        let reply = keep.recv_timeout(PATIENCE).expect("the request");
        // As when the daemon is killed here: nothing is said.
        std::mem::forget(reply);
        served.end();
    }
}

#[test]
fn a_sleeper_that_came_again_is_woken_by_the_interrupt_that_names_it_so_and_by_no_other() {
    let served = Served::new();
    served.next(|request, turn| {
        let Operation::Ioctl(ioctl) = request.operation else {
            panic!("an IOCTL")
        };
        let channel = std::sync::Arc::clone(ioctl.reply.channel());
        let ticket = channel.interrupts().watch(ioctl.reply.unique());
        assert!(turn.pass());
        let (wake, woken) = mpsc::channel();
        if ticket.sleep(move || wake.send(()).expect("it waits")).is_ok() {
            woken.recv_timeout(PATIENCE).expect("an interrupt");
        }
        ioctl.reply.restart();
    });
    served
        .kernel
        .send(FUSE_IOCTL, 2 | AGAIN, &fuse_ioctl_in::default(), &[]);
    for unique in [2, 2 | AGAIN] {
        served.next(|request, _| match request.operation {
            Operation::Interrupt { unique, channel } => channel.interrupts().interrupt(unique),
            _ => panic!("an INTERRUPT"),
        });
        let body = fuse_interrupt_in { unique };
        served.kernel.send(FUSE_INTERRUPT, unique | 1, &body, &[]);
    }
    let answer = served.kernel.answer();
    assert_eq!(answer.unique, 2 | AGAIN);
    assert_eq!(answer.body::<fuse_ioctl_out>().result, -512);
    served.end();
}

/// A fatal signal has taken the request back (ENOENT), or the channel ends: nobody is there to be told.
#[test]
fn an_answer_that_nobody_takes_is_given_once_and_the_next_request_is_served() {
    let served = Served::new();
    shutdown(served.kernel.0.as_raw_fd(), Shutdown::Read).expect("a socket");
    let (seen, see) = mpsc::channel();
    for unique in [2 | AGAIN, 4] {
        let seen = seen.clone();
        served.next(move |request, _| {
            let Operation::Open { reply, .. } = request.operation else {
                panic!("an OPEN")
            };
            reply.opened(1);
            seen.send(unique).expect("the test waits");
        });
        served.kernel.send(FUSE_OPEN, unique, &open_in(0), &[]);
        assert_eq!(see.recv_timeout(PATIENCE), Ok(unique));
    }
    served.end();
}

/// The next daemon must not end over it, too, and every node with it.
#[test]
fn a_request_that_has_ended_too_many_daemons_is_answered_an_error_and_the_next_one_is_served() {
    let served = Served::new();
    served.next(|request, _| {
        let Operation::Open { reply, .. } = request.operation else {
            panic!("an OPEN")
        };
        reply.channel().count(Tries::deadly(What::Request(4)));
        reply.opened(1);
    });
    served.kernel.send(FUSE_OPEN, 2, &open_in(0), &[]);
    assert_eq!(served.kernel.answer().error, 0);
    served
        .kernel
        .send(FUSE_IOCTL, 4 | AGAIN, &fuse_ioctl_in::default(), &[]);
    let refused = served.kernel.answer();
    assert_eq!((refused.error, refused.unique), (-libc::EIO, 4 | AGAIN));
    // A new one has that number by chance, another comes again.
    for unique in [4, 6 | AGAIN] {
        served.next(|request, _| {
            let Operation::Open { reply, .. } = request.operation else {
                panic!("an OPEN")
            };
            reply.opened(1);
        });
        served.kernel.send(FUSE_OPEN, unique, &open_in(0), &[]);
        assert_eq!(served.kernel.answer().error, 0);
    }
    served.end();
}
