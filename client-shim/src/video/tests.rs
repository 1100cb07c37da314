use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{FdFlags, fcntl_getfd};
use rustix::pipe::pipe;
use vidcompat_proto::Errno;
use vidcompat_proto::ioc::{Command, Direction};
use vidcompat_proto::shim::{Answer, Ask, FBIOGET_DMABUF, MOVE_FIRST};

use super::Way::{self, As, Plain};
use super::{DMABUF_FD, EXPBUF_FD, MOST_ROUNDS, fetch, ioctl, is_spoken, speak};
use crate::sys;
use crate::testing::{Fake, without_allocating};

const QBUF: Command = Command::new(Direction::ReadWrite, b'V', 15, 88);
const SPOKEN: Command = Command(0xc058_d60f);
const BEFORE: i32 = 4711;

/// Whether an ioctl that is answered with one of `answers` after the other succeeds (with what), and what was called.
fn spoken(
    answers: &[Result<c_int, i32>],
    obeys: bool,
    after: Option<Result<(), Errno>>,
) -> (Result<c_int, i32>, Vec<Way>) {
    let calls = RefCell::new(Vec::new());
    let mut answers = answers.iter().copied();
    let answers = RefCell::new(&mut answers);
    let call = |way| {
        calls.borrow_mut().push(way);
        answers.borrow_mut().next().unwrap().unwrap_or_else(|errno| {
            sys::set_errno(errno);
            -1
        })
    };
    sys::set_errno(BEFORE);
    let result = speak(QBUF, &call, &|| obeys, &|| after);
    let result = if result >= 0 {
        assert_eq!(sys::errno(), BEFORE, "what succeeds leaves errno alone");
        Ok(result)
    } else {
        Err(sys::errno())
    };
    (result, calls.into_inner())
}

#[test]
fn only_the_ioctls_that_need_it_are_spoken() {
    let number = |number| Command::new(Direction::ReadWrite, b'V', number, 80);
    let all: Vec<u8> = (0..=255).filter(|nr| is_spoken(number(*nr))).collect();
    assert_eq!(all, [8, 15, 16, 92, 93, 104]);
    assert!(
        is_spoken(Command::new(Direction::ReadWrite, b'V', 15, 68)),
        "a 32-bit program's"
    );
    assert!(is_spoken(FBIOGET_DMABUF) && !is_spoken(Command(FBIOGET_DMABUF.0 + 1)));
    assert!(!is_spoken(SPOKEN) && !is_spoken(Command::new(Direction::ReadWrite, b'd', 15, 88)));
}

#[test]
fn a_daemon_that_knows_us_is_asked_once() {
    assert_eq!(spoken(&[Ok(0)], false, Some(Ok(()))), (Ok(0), vec![As(SPOKEN)]));
    for errno in [
        libc::EINVAL,
        libc::EFAULT,
        libc::EINTR,
        libc::ENOTCONN,
        libc::EBADF,
    ] {
        assert_eq!(spoken(&[Err(errno)], true, None), (Err(errno), vec![As(SPOKEN)]));
    }
}

#[test]
fn an_old_daemon_is_asked_plainly() {
    let ways = vec![As(SPOKEN), Plain];
    assert_eq!(
        spoken(&[Err(libc::ENOTTY), Ok(0)], true, None),
        (Ok(0), ways.clone())
    );
    assert_eq!(
        spoken(&[Err(libc::ENOTTY), Err(libc::EINVAL)], true, None),
        (Err(libc::EINVAL), ways)
    );
}

#[test]
fn what_is_to_be_moved_is_moved_and_the_call_made_again() {
    let moves = [Err(MOVE_FIRST), Err(MOVE_FIRST), Ok(0)];
    assert_eq!(spoken(&moves, true, Some(Ok(()))), (Ok(0), vec![As(SPOKEN); 3]));
    // Not for ever.
    let mut for_ever = vec![Err(MOVE_FIRST); MOST_ROUNDS];
    for_ever.push(Err(libc::EINVAL));
    let (result, calls) = spoken(&for_ever, true, None);
    assert_eq!(
        (result, calls.len(), calls.last()),
        (Err(libc::EINVAL), MOST_ROUNDS + 1, Some(&Plain))
    );
    // And not where nothing can be moved.
    let refused = [Err(MOVE_FIRST), Ok(0)];
    assert_eq!(spoken(&refused, false, None), (Ok(0), vec![As(SPOKEN), Plain]));
}

#[test]
fn what_comes_afterwards_may_fail() {
    let failed = Some(Err(Errno::EFAULT));
    assert_eq!(
        spoken(&[Ok(0)], true, failed),
        (Err(libc::EFAULT), vec![As(SPOKEN)])
    );
    // What was left is there no more: once more, and not for ever.
    let lost = Some(Err(Errno::ENOENT));
    let mut for_ever = vec![Ok(0); MOST_ROUNDS];
    for_ever.push(Err(libc::ENODEV));
    let (result, calls) = spoken(&for_ever, true, lost);
    assert_eq!((result, calls.len()), (Err(libc::ENODEV), MOST_ROUNDS + 1));
    assert_eq!(
        spoken(&[Ok(0), Err(libc::EINVAL)], true, lost),
        (Err(libc::EINVAL), vec![As(SPOKEN); 2])
    );
    // Nobody has answered: as without us.
    assert_eq!(
        spoken(&[Ok(0), Err(libc::EINVAL)], true, None),
        (Err(libc::EINVAL), vec![As(SPOKEN), Plain])
    );
}

#[test]
fn other_files_get_the_plain_call() {
    let file = File::open("/dev/null").unwrap();
    for fd in [file.as_raw_fd(), 1_000_000, -1] {
        let called = Cell::new(0);
        sys::set_errno(BEFORE);
        let result = without_allocating(|| {
            ioctl(fd, QBUF, 0, |way| {
                assert_eq!((way, sys::errno()), (Plain, BEFORE));
                called.set(called.get() + 1);
                7
            })
        });
        assert_eq!((result, called.get()), (7, 1));
    }
}

/// `struct v4l2_exportbuffer` as words.
type ExportBuffer = [u32; 16];
const TICKET: u32 = 0x1357_9bdf;
const EXPORTED: ExportBuffer = [1, 0, 0, 0, TICKET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn daemon(close_on_exec: bool, file: OwnedFd) -> Fake {
    Fake::answering(
        Ask::Fetch { ticket: TICKET },
        Answer::File { close_on_exec },
        Some(file),
    )
}

#[test]
fn an_exported_buffer_is_fetched_and_its_number_told() {
    for close_on_exec in [false, true] {
        let (reader, writer) = pipe().unwrap();
        let fake = daemon(close_on_exec, writer);
        let mut request = EXPORTED;
        let address = (&raw mut request).expose_provenance();
        let link = fake.link();
        assert_eq!(
            without_allocating(|| fetch(&link, address, EXPBUF_FD)),
            Some(Ok(()))
        );
        let request = std::hint::black_box(request);
        assert_eq!((&request[..4], &request[5..]), (&EXPORTED[..4], &EXPORTED[5..]));
        let fd = c_int::try_from(request[4]).unwrap();
        // SAFETY: the number that we were told.
        let flags = fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).unwrap();
        assert_eq!(flags.contains(FdFlags::CLOEXEC), close_on_exec);
        drop(fake);
        // It is the only one.
        // SAFETY: ours from now on.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0));
    }
}

#[test]
fn a_framebuffers_dma_buf_is_fetched_at_the_beginning_of_its_struct() {
    let fake = daemon(true, pipe().unwrap().1);
    let mut request = [TICKET, 7];
    let address = (&raw mut request).expose_provenance();
    assert_eq!(fetch(&fake.link(), address, DMABUF_FD), Some(Ok(())));
    let request = std::hint::black_box(request);
    assert_eq!(request[1], 7);
    // SAFETY: ours from now on.
    drop(unsafe { OwnedFd::from_raw_fd(c_int::try_from(request[0]).unwrap()) });
}

#[test]
fn where_the_struct_has_gone_it_is_efault() {
    assert_eq!(
        fetch(&Fake::nobody().link(), 0, EXPBUF_FD),
        Some(Err(Errno::EFAULT))
    );
    assert_eq!(
        fetch(&Fake::nobody().link(), usize::MAX - 8, EXPBUF_FD),
        Some(Err(Errno::EFAULT))
    );
}

#[test]
fn where_the_struct_has_become_read_only_nobody_gets_the_fd() {
    static READ_ONLY: ExportBuffer = EXPORTED;
    let (reader, writer) = pipe().unwrap();
    let fake = daemon(false, writer);
    let address = std::hint::black_box(&raw const READ_ONLY).expose_provenance();
    assert_eq!(fetch(&fake.link(), address, EXPBUF_FD), Some(Err(Errno::EFAULT)));
    drop(fake);
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0));
}

#[test]
fn a_daemon_that_has_no_such_ticket_or_makes_no_sense() {
    let request = EXPORTED;
    let address = (&raw const request).expose_provenance();
    let ask = Ask::Fetch { ticket: TICKET };
    let fake = Fake::answering(ask, Answer::Errno(Errno::ENOENT), None);
    assert_eq!(fetch(&fake.link(), address, EXPBUF_FD), Some(Err(Errno::ENOENT)));
    let fake = Fake::answering(ask, Answer::Yes, None);
    assert_eq!(fetch(&fake.link(), address, EXPBUF_FD), None);
    assert_eq!(fetch(&Fake::nobody().link(), address, EXPBUF_FD), None);
}
