//! The transport with a socket pair in place of `/dev/cuse`: the test is the kernel.

mod resend;
mod retry;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::{Errno, PollEvents};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use polyfuse_kernel::{
    CUSE_INIT, FUSE_INTERRUPT, FUSE_IOCTL, FUSE_OPEN, FUSE_POLL, FUSE_READ, FUSE_RELEASE, FUSE_WRITE,
    cuse_init_in, cuse_init_out, fuse_in_header, fuse_interrupt_in, fuse_ioctl_in, fuse_ioctl_out,
    fuse_open_in, fuse_open_out, fuse_out_header, fuse_poll_in, fuse_poll_out, fuse_read_in, fuse_release_in,
    fuse_write_in, fuse_write_out,
};
use proptest::prelude::*;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Channel, Handler, InitError, NodeSpec, Operation, Request, Turn, initialize, serve};

const PATIENCE: Duration = Duration::from_secs(10);

/// The kernel's side.
struct Kernel(std::fs::File);

/// An answer: error, unique, payload.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    error: i32,
    unique: u64,
    payload: Vec<u8>,
}

impl Answer {
    fn body<T: FromBytes>(&self) -> T {
        T::read_from_prefix(&self.payload).expect("a whole struct").0
    }
}

impl Kernel {
    fn send(&self, opcode: u32, unique: u64, body: &impl IntoBytesImmutable, data: &[u8]) {
        let mut message = header(opcode, unique);
        message.extend_from_slice(body.bytes());
        message.extend_from_slice(data);
        self.send_raw(&message);
    }

    fn send_raw(&self, message: &[u8]) {
        nix::unistd::write(&self.0, message).expect("the other end reads");
    }

    fn answer(&self) -> Answer {
        let mut buffer = vec![0; 200_000];
        let size = (&self.0).read(&mut buffer).expect("an answer in time");
        let (out, payload) = fuse_out_header::read_from_prefix(&buffer[..size]).expect("a header");
        assert_eq!(
            out.len as usize, size,
            "the header tells the length of the message"
        );
        Answer {
            error: out.error,
            unique: out.unique,
            payload: payload.to_vec(),
        }
    }
}

trait IntoBytesImmutable {
    fn bytes(&self) -> &[u8];
}

impl<T: IntoBytes + Immutable> IntoBytesImmutable for T {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

fn header(opcode: u32, unique: u64) -> Vec<u8> {
    let header = fuse_in_header {
        len: 0,
        opcode,
        unique,
        pid: 42,
        uid: 7,
        gid: 8,
        ..fuse_in_header::default()
    };
    header.as_bytes().to_vec()
}

fn pair() -> (Kernel, Arc<Channel>) {
    let (ours, theirs): (OwnedFd, OwnedFd) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).expect("a socket pair");
    setsockopt(&ours, sockopt::SndBuf, &1_000_000).expect("a socket");
    setsockopt(
        &ours,
        sockopt::ReceiveTimeout,
        &nix::sys::time::TimeVal::new(10, 0),
    )
    .expect("a socket");
    (Kernel(ours.into()), Channel::over(theirs))
}

/// What the handler is to do with the next request.
type Script = Box<dyn for<'a> FnOnce(Request<'a>, &Turn<'_>) + Send>;

struct Scripted {
    scripts: Mutex<Receiver<Script>>,
}

impl Handler for Scripted {
    fn handle(&self, request: Request<'_>, turn: &Turn<'_>) {
        let script = self
            .scripts
            .lock()
            .expect("no panic under it")
            .recv_timeout(PATIENCE)
            .expect("a script");
        script(request, turn);
    }
}

struct Served {
    kernel: Kernel,
    scripts: Sender<Script>,
    server: JoinHandle<std::io::Result<()>>,
}

impl Served {
    fn new() -> Self {
        let (kernel, channel) = pair();
        let (scripts, receiver) = mpsc::channel();
        let handler = Scripted {
            scripts: Mutex::new(receiver),
        };
        let server = thread::spawn(move || serve(channel, handler));
        Self {
            kernel,
            scripts,
            server,
        }
    }

    fn next(&self, script: impl for<'a> FnOnce(Request<'a>, &Turn<'_>) + Send + 'static) {
        self.scripts.send(Box::new(script)).expect("the server runs");
    }

    fn end(self) {
        drop(self.kernel);
        self.server.join().expect("no panic").expect("an orderly end");
    }
}

fn open_in(flags: u32) -> fuse_open_in {
    fuse_open_in { flags, unused: 0 }
}

#[test]
fn handshake_offers_a_restricted_node_with_its_name_and_number() {
    let (kernel, channel) = pair();
    kernel.send(
        CUSE_INIT,
        2,
        &cuse_init_in {
            major: 7,
            minor: 41,
            unused: 0,
            flags: 1,
        },
        &[],
    );
    initialize(
        &channel,
        &NodeSpec {
            name: "video64".into(),
            major: 81,
            minor: 256,
            unrestricted: false,
        },
    )
    .expect("a handshake");
    let answer = kernel.answer();
    assert_eq!((answer.error, answer.unique), (0, 2));
    let out: cuse_init_out = answer.body();
    assert_eq!(
        (out.major, out.flags, out.dev_major, out.dev_minor),
        (7, 0, 81, 256)
    );
    assert_eq!((out.max_read, out.max_write), (131_072, 131_072));
    assert!(out.minor >= 16);
    assert_eq!(&answer.payload[72..], b"DEVNAME=video64\0");
}

#[test]
fn handshake_with_something_else_or_with_a_name_that_is_none_is_refused() {
    let (kernel, channel) = pair();
    kernel.send(FUSE_OPEN, 2, &open_in(0), &[]);
    let node = NodeSpec {
        name: "video64".into(),
        major: 81,
        minor: 256,
        unrestricted: false,
    };
    assert!(matches!(
        initialize(&channel, &node),
        Err(InitError::Protocol {
            opcode: FUSE_OPEN,
            ..
        })
    ));
    for name in ["", "a\0b", "a=b", "a\nDEVNAME"] {
        let node = NodeSpec {
            name: name.into(),
            ..node.clone()
        };
        assert!(
            matches!(initialize(&channel, &node), Err(InitError::Name(_))),
            "{name:?}"
        );
    }
}

#[test]
fn requests_carry_their_caller_and_are_answered_in_any_order_from_any_thread() {
    let served = Served::new();
    let (kept, keep) = mpsc::channel();
    served.next(move |request, turn| {
        assert_eq!(
            (request.caller.tid, request.caller.uid, request.caller.gid),
            (42, 7, 8)
        );
        let Operation::Open { flags, reply } = request.operation else {
            panic!("an OPEN")
        };
        assert_eq!(flags.0, libc::O_RDWR);
        assert!(turn.pass());
        kept.send(reply).expect("kept");
    });
    served.next(|request, _| {
        let Operation::Release { fh: 9, reply } = request.operation else {
            panic!("a RELEASE")
        };
        reply.released();
    });
    served.kernel.send(FUSE_OPEN, 2, &open_in(2), &[]);
    let first = keep.recv_timeout(PATIENCE).expect("the first request");
    served.kernel.send(
        FUSE_RELEASE,
        4,
        &fuse_release_in {
            fh: 9,
            ..Default::default()
        },
        &[],
    );
    assert_eq!(
        served.kernel.answer(),
        Answer {
            error: 0,
            unique: 4,
            payload: vec![]
        }
    );
    thread::spawn(move || first.opened(17));
    let answer = served.kernel.answer();
    assert_eq!((answer.unique, answer.body::<fuse_open_out>().fh), (2, 17));
    served.end();
}

#[test]
fn a_request_that_blocks_does_not_keep_others_from_being_read() {
    let served = Served::new();
    let (release, blocked) = mpsc::channel::<()>();
    for _ in 0..5 {
        served.kernel.send(FUSE_OPEN, 2, &open_in(0), &[]);
    }
    served.next(move |request, turn| {
        assert!(turn.pass());
        blocked.recv_timeout(PATIENCE).expect("released");
        let Operation::Open { reply, .. } = request.operation else {
            panic!("an OPEN")
        };
        reply.opened(1);
    });
    for fh in 2..6 {
        served.next(move |request, turn| {
            assert!(turn.pass());
            assert!(turn.pass());
            let Operation::Open { reply, .. } = request.operation else {
                panic!("an OPEN")
            };
            reply.opened(fh);
        });
    }
    let mut others: Vec<u64> = (0..4)
        .map(|_| served.kernel.answer().body::<fuse_open_out>().fh)
        .collect();
    others.sort_unstable();
    assert_eq!(others, [2, 3, 4, 5]);
    release.send(()).expect("it waits");
    assert_eq!(served.kernel.answer().body::<fuse_open_out>().fh, 1);
    served.end();
}

#[test]
fn with_too_many_calls_under_way_the_last_reader_still_reads_and_says_so() {
    let served = Served::new();
    let (release, blocked) = mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let (report, passed) = mpsc::channel();
    for unique in 1..=128u64 {
        let (report, blocked) = (report.clone(), Arc::clone(&blocked));
        served.next(move |request, turn| {
            let Operation::Open { reply, .. } = request.operation else {
                panic!("an OPEN")
            };
            let may_block = turn.pass();
            report.send(may_block).expect("the test listens");
            if may_block {
                blocked
                    .lock()
                    .expect("no panic under it")
                    .recv_timeout(PATIENCE)
                    .expect("released");
                reply.opened(1);
            } else {
                reply.error(Errno::ENOMEM);
            }
        });
        served.kernel.send(FUSE_OPEN, unique * 2, &open_in(0), &[]);
        assert_eq!(passed.recv_timeout(PATIENCE), Ok(unique < 128));
    }
    assert_eq!(
        served.kernel.answer(),
        Answer {
            error: -libc::ENOMEM,
            unique: 256,
            payload: vec![]
        }
    );
    for _ in 1..128 {
        release.send(()).expect("they wait");
    }
    for _ in 1..128 {
        assert_eq!(served.kernel.answer().error, 0);
    }
    served.end();
}

#[test]
fn a_dropped_reply_and_a_panic_answer_eio_and_serving_goes_on() {
    let served = Served::new();
    served.next(|request, _| drop(request));
    served.next(|_, turn| {
        assert!(turn.pass());
        panic!("this panic belongs to the test");
    });
    served.next(|_, _| panic!("this panic belongs to the test"));
    served.next(|request, _| {
        let Operation::Open { reply, .. } = request.operation else {
            panic!("an OPEN")
        };
        reply.opened(5);
    });
    for unique in [2, 4, 6, 8] {
        served.kernel.send(FUSE_OPEN, unique, &open_in(0), &[]);
        let answer = served.kernel.answer();
        assert_eq!(
            (answer.unique, answer.error),
            (unique, if unique == 8 { 0 } else { -libc::EIO })
        );
    }
    served.end();
}

#[test]
fn an_interrupt_right_behind_its_request_ends_it_with_erestartsys() {
    let served = Served::new();
    let (may_sleep, wait) = mpsc::channel::<()>();
    served.next(move |request, turn| {
        let Operation::Ioctl(ioctl) = request.operation else {
            panic!("an IOCTL")
        };
        let ticket = ioctl.reply.channel().interrupts().watch(ioctl.reply.unique());
        assert!(turn.pass());
        wait.recv_timeout(PATIENCE).expect("the interrupt was handled");
        assert!(ticket.sleep(|| panic!("it came before")).is_err());
        ioctl.reply.restart();
    });
    served.next(move |request, turn| {
        let Operation::Interrupt { unique, channel } = request.operation else {
            panic!("an INTERRUPT")
        };
        assert!(turn.pass());
        channel.interrupts().interrupt(unique);
        may_sleep.send(()).expect("it waits");
    });
    served.kernel.send(FUSE_IOCTL, 2, &fuse_ioctl_in::default(), &[]);
    served
        .kernel
        .send(FUSE_INTERRUPT, 3, &fuse_interrupt_in { unique: 2 }, &[]);
    let answer = served.kernel.answer();
    assert_eq!(
        (
            answer.unique,
            answer.error,
            answer.body::<fuse_ioctl_out>().result
        ),
        (2, 0, -512)
    );
    served.end();
}

#[test]
fn ioctl_payload_goes_back_also_with_an_error_and_any_errno_passes() {
    let served = Served::new();
    served.next(|request, _| {
        let Operation::Ioctl(ioctl) = request.operation else {
            panic!("an IOCTL")
        };
        assert_eq!(
            (ioctl.command, ioctl.client_arg, ioctl.input, ioctl.out_size),
            (0xc0, 0x1000, &b"abcd"[..], 4)
        );
        ioctl.reply.result(-524, b"wxyz");
    });
    let body = fuse_ioctl_in {
        cmd: 0xc0,
        arg: 0x1000,
        in_size: 4,
        out_size: 4,
        ..Default::default()
    };
    served.kernel.send(FUSE_IOCTL, 2, &body, b"abcd");
    let answer = served.kernel.answer();
    assert_eq!((answer.error, answer.body::<fuse_ioctl_out>().result), (0, -524));
    assert_eq!(&answer.payload[16..], b"wxyz");
    served.end();
}

#[test]
fn pieces_of_read_and_write_carry_their_offset() {
    let served = Served::new();
    served.next(|request, _| {
        let Operation::Read {
            fh: 3,
            offset: 131_072,
            size: 100,
            flags,
            reply,
        } = request.operation
        else {
            panic!("a READ")
        };
        assert_ne!(flags.0 & libc::O_NONBLOCK, 0);
        reply.data(&[1, 2, 3]);
    });
    served.next(|request, _| {
        let Operation::Write {
            fh: 3,
            offset: 0,
            data,
            reply,
            ..
        } = request.operation
        else {
            panic!("a WRITE")
        };
        assert_eq!(data.len(), 131_072);
        reply.written(131_072);
    });
    let nonblock = libc::O_NONBLOCK.cast_unsigned();
    let read = fuse_read_in {
        fh: 3,
        offset: 131_072,
        size: 100,
        flags: nonblock,
        ..Default::default()
    };
    served.kernel.send(FUSE_READ, 2, &read, &[]);
    assert_eq!(served.kernel.answer().payload, [1, 2, 3]);
    let write = fuse_write_in {
        fh: 3,
        size: 131_072,
        ..Default::default()
    };
    served.kernel.send(FUSE_WRITE, 4, &write, &vec![9; 131_072]);
    assert_eq!(served.kernel.answer().body::<fuse_write_out>().size, 131_072);
    served.end();
}

#[test]
fn poll_is_answered_and_its_handle_notified() {
    let served = Served::new();
    served.next(|request, _| {
        let Operation::Poll {
            kh: 77,
            schedule_notify: true,
            events,
            reply,
            ..
        } = request.operation
        else {
            panic!("a POLL")
        };
        assert_eq!(events, PollEvents::POLLIN);
        let channel = Arc::clone(reply.channel());
        reply.ready(PollEvents::empty());
        channel.notify_poll(77);
    });
    served.kernel.send(
        FUSE_POLL,
        2,
        &fuse_poll_in {
            fh: 1,
            kh: 77,
            flags: 1,
            events: 1,
        },
        &[],
    );
    assert_eq!(served.kernel.answer().body::<fuse_poll_out>().revents, 0);
    let notification = served.kernel.answer();
    assert_eq!((notification.unique, notification.error), (0, 1));
    assert_eq!(notification.body::<u64>(), 77);
    served.end();
}

#[test]
fn unknown_truncated_and_lying_requests_are_answered_and_never_enosys() {
    let served = Served::new();
    let lying_write = fuse_write_in {
        size: 1000,
        ..Default::default()
    };
    let lying_ioctl = fuse_ioctl_in {
        in_size: u32::MAX,
        ..Default::default()
    };
    served.kernel.send(9999, 2, &0u32, &[]);
    served.kernel.send(FUSE_OPEN, 4, &0u8, &[]);
    served.kernel.send(FUSE_POLL, 6, &0u8, &[]);
    served.kernel.send(FUSE_WRITE, 8, &lying_write, b"short");
    served.kernel.send(FUSE_IOCTL, 10, &lying_ioctl, b"short");
    for unique in [2, 4, 6, 8, 10] {
        assert_eq!(
            served.kernel.answer(),
            Answer {
                error: -libc::EIO,
                unique,
                payload: vec![]
            }
        );
    }
    served.next(|request, _| {
        let Operation::Open { reply, .. } = request.operation else {
            panic!("an OPEN")
        };
        reply.error(Errno::ENOSYS);
    });
    served.kernel.send(FUSE_OPEN, 12, &open_in(0), &[]);
    assert_eq!(served.kernel.answer().error, -libc::EIO);
    served.end();
}

/// Answers everything, whatever it is.
struct Polite;

impl Handler for Polite {
    fn handle(&self, request: Request<'_>, turn: &Turn<'_>) {
        match request.operation {
            Operation::Open { reply, .. } => reply.opened(1),
            Operation::Release { reply, .. } => reply.released(),
            Operation::Read { reply, .. } => reply.data(&[]),
            Operation::Write { reply, data, .. } => reply.written(u32::try_from(data.len()).unwrap_or(0)),
            Operation::Ioctl(ioctl) => ioctl.reply.result(0, &[]),
            Operation::Poll { reply, .. } => {
                assert!(turn.pass());
                reply.ready(PollEvents::empty());
            }
            Operation::Interrupt { unique, channel } => channel.interrupts().interrupt(unique),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Whatever the kernel sends: every request that has a header gets exactly one answer, interrupts get none.
    #[test]
    fn every_message_is_answered_once(
        messages in prop::collection::vec(
            (prop_oneof![Just(FUSE_OPEN), Just(FUSE_READ), Just(FUSE_WRITE), Just(FUSE_IOCTL), Just(FUSE_POLL),
                Just(FUSE_RELEASE), Just(FUSE_INTERRUPT), any::<u32>()],
             prop::collection::vec(any::<u8>(), 0..120)),
            1..20),
    ) {
        let (kernel, channel) = pair();
        let server = thread::spawn(move || serve(channel, Polite));
        let mut expected = Vec::new();
        for (unique, (opcode, body)) in (1u64..).zip(&messages) {
            let mut message = header(*opcode, unique);
            message.extend_from_slice(body);
            kernel.send_raw(&message);
            if *opcode != FUSE_INTERRUPT {
                expected.push(unique);
            }
        }
        let mut answered: Vec<u64> = expected.iter().map(|_| kernel.answer().unique).collect();
        answered.sort_unstable();
        prop_assert_eq!(answered, expected);
        nix::sys::socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(&kernel.0), nix::sys::socket::Shutdown::Write)
            .expect("a socket");
        server.join().expect("no panic").expect("an orderly end");
        let mut rest = Vec::new();
        (&kernel.0).read_to_end(&mut rest).expect("a socket");
        prop_assert_eq!(rest.len(), 0);
    }
}

/// polyfuse-kernel's structs against those that bindgen made from the 6.9 header.
#[test]
fn the_structs_are_those_of_the_kernel_header() {
    macro_rules! same {
        ($($name:ident),* $(,)?) => {
            $(assert_eq!(size_of::<polyfuse_kernel::$name>(), size_of::<fuse_abi::linux::$name>(), stringify!($name));)*
        };
    }
    same!(
        fuse_in_header,
        fuse_out_header,
        cuse_init_in,
        cuse_init_out,
        fuse_open_in,
        fuse_open_out,
        fuse_release_in,
        fuse_read_in,
        fuse_write_in,
        fuse_write_out,
        fuse_ioctl_in,
        fuse_ioctl_out,
        fuse_poll_in,
        fuse_poll_out,
        fuse_interrupt_in,
        fuse_notify_poll_wakeup_out,
    );
    use std::mem::offset_of;
    macro_rules! same_offsets {
        ($name:ident: $($field:ident),*) => {
            $(assert_eq!(offset_of!(polyfuse_kernel::$name, $field), offset_of!(fuse_abi::linux::$name, $field));)*
        };
    }
    same_offsets!(fuse_in_header: len, opcode, unique, uid, gid, pid);
    same_offsets!(cuse_init_out: major, minor, flags, max_read, max_write, dev_major, dev_minor);
    same_offsets!(fuse_ioctl_in: fh, flags, cmd, arg, in_size, out_size);
    same_offsets!(fuse_poll_in: fh, kh, flags, events);
    same_offsets!(fuse_read_in: fh, offset, size, flags);
    same_offsets!(fuse_write_in: fh, offset, size, flags);
}
