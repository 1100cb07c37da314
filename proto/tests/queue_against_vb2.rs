//! Our queue core against videobuf2: the same calls go to a model of vb2 that has USERPTR, and to our core over a
//! model of vb2 that has none; after every step a client must not be able to tell which it talks to.
#![allow(clippy::unwrap_used)] // a test may panic, that is how it fails

mod subject;
mod vb2_model;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{
    V4l2Buffer, V4l2CreateBuffers, V4l2Format, V4l2RequestBuffers, buf_cap, buf_flag, buf_type, memory,
};
use vidcompat_proto::queue::{Claim, ClientKey};

use subject::{OURS, Subject};
use vb2_model::{Completion, EOVERFLOW, Fault, FileId, Held, Params, State, UserMemory, Vb2Model};

/// A second open file of the real device.
const THEIRS: FileId = FileId(2);
const RIGHT_TYPE: u32 = buf_type::VIDEO_CAPTURE;

/// A client has some stretches of memory; which of them are mapped changes with time.
const SLOTS: u64 = 4;
const SLOT_BASE: u64 = 0x7f00_0000_0000;
const SLOT_SIZE: u64 = 0x0100_0000;

#[derive(Clone, Debug)]
struct Case {
    params: Params,
    backing: u32,
    try_import: bool,
    actions: Vec<Action>,
}

/// What a client passes to QBUF and PREPARE_BUF.
#[derive(Clone, Debug)]
struct Given {
    index: u32,
    buf_type: u32,
    memory: u32,
    pointer: u64,
    length: Length,
    flags: u32,
    client: u64,
    noise: u32,
}

/// A length, by how it relates to what the driver needs.
#[derive(Clone, Copy, Debug)]
enum Length {
    Zero,
    Short,
    Exact,
    Odd,
    Pages,
    Double,
    Huge,
}

#[derive(Clone, Debug)]
enum Action {
    Reqbufs {
        count: u32,
        memory: u32,
        buf_type: u32,
        flags: u8,
        fault: bool,
    },
    CreateBufs {
        count: u32,
        memory: u32,
        buf_type: u32,
        size: Length,
        flags: u32,
        fault: bool,
    },
    Querybuf {
        index: u32,
        buf_type: u32,
        noise: u32,
    },
    PrepareBuf {
        given: Given,
        fault: Option<Fault>,
    },
    Qbuf {
        given: Given,
        fault: Option<Fault>,
    },
    Dqbuf {
        buf_type: u32,
        memory: u32,
        flags: u32,
        noise: u32,
    },
    Streamon {
        buf_type: u32,
        fault: bool,
    },
    /// `waiter_runs`: does a sleeping DQBUF get the processor at once?
    Streamoff {
        buf_type: u32,
        waiter_runs: bool,
    },
    Complete(Completion),
    ToggleWaiting,
    ToggleMapping {
        client: u64,
        slot: u64,
    },
    Close,
    TheirReqbufs {
        count: u32,
    },
    TheirStreamon,
    TheirStreamoff,
    TheirQbuf,
    TheirClose,
}

// Generators. Valid arguments are frequent enough for streams of many frames, invalid ones for every check.

fn mostly<T: Clone + std::fmt::Debug + 'static>(usual: T, unusual: &'static [T]) -> impl Strategy<Value = T> {
    prop_oneof![24 => Just(usual), 1 => select(unusual)]
}

fn buf_types() -> impl Strategy<Value = u32> {
    // OUTPUT, OVERLAY, VBI, multi-planar, META, and no type at all.
    mostly(RIGHT_TYPE, &[0, 2, 3, 4, 9, 13, 77])
}

fn memories() -> impl Strategy<Value = u32> {
    mostly(memory::USERPTR, &[0, 1, 3, 4, 5])
}

fn indices() -> impl Strategy<Value = u32> {
    prop_oneof![30 => 0..4_u32, 1 => select(&[4, 5, 8, 31, 64, u32::MAX][..])]
}

fn flags() -> impl Strategy<Value = u32> {
    prop_oneof![
        16 => Just(0),
        1 => Just(buf_flag::REQUEST_FD),
        2 => any::<u32>().prop_map(|flags| flags & !buf_flag::REQUEST_FD),
        1 => select(&[buf_flag::NO_CACHE_CLEAN | buf_flag::NO_CACHE_INVALIDATE, 0x2002, 0x0020_0000][..]),
    ]
}

fn lengths() -> impl Strategy<Value = Length> {
    prop_oneof![
        12 => Just(Length::Exact),
        2 => Just(Length::Odd),
        2 => Just(Length::Pages),
        3 => Just(Length::Double),
        1 => Just(Length::Short),
        1 => select(&[Length::Zero, Length::Huge][..]),
    ]
}

/// What CREATE_BUFS asks for. Not sizes that no memory can stand behind: vb2 promises them, because a USERPTR queue
/// allocates nothing, and we must refuse.
fn sizes() -> impl Strategy<Value = Length> {
    lengths().prop_filter("a size that can be allocated", |size| {
        !matches!(size, Length::Huge)
    })
}

fn pointers(index: u32) -> impl Strategy<Value = u64> {
    let own = SLOT_BASE + u64::from(index) % SLOTS * SLOT_SIZE;
    prop_oneof![
        20 => Just(own),
        4 => (0..SLOTS, select(&[0_u64, 8, 0x1234][..])).prop_map(|(slot, at)| SLOT_BASE + slot * SLOT_SIZE + at),
        // Null, never mapped, the end of a slot, a kernel address, a range that wraps or ends with all memory.
        1 => select(&[0, 0x1000, SLOT_BASE + SLOT_SIZE - 100, 0xffff_8880_0000_0000, u64::MAX - 4095, u64::MAX][..]),
    ]
}

fn givens() -> impl Strategy<Value = Given> {
    let client = prop_oneof![8 => Just(1_u64), 1 => Just(2_u64)];
    let rest = (buf_types(), memories(), lengths(), flags(), client, any::<u32>());
    (
        indices().prop_flat_map(|index| (Just(index), pointers(index))),
        rest,
    )
        .prop_map(
            |((index, pointer), (buf_type, memory, length, flags, client, noise))| Given {
                index,
                buf_type,
                memory,
                pointer,
                length,
                flags,
                client,
                noise,
            },
        )
}

fn buffer_faults() -> impl Strategy<Value = Option<Fault>> {
    mostly(None, &[Some(Fault::BufPrepare), Some(Fault::StartStreaming)])
}

fn completions() -> impl Strategy<Value = Completion> {
    let bytesused = prop_oneof![3 => Just(u32::MAX), 3 => 0..20_000_u32, 1 => Just(0)];
    (
        bytesused,
        0..5_u32,
        mostly(false, &[true]),
        prop_oneof![60 => Just(false), 1 => Just(true)],
    )
        .prop_map(|(bytesused, field, error, last)| Completion {
            bytesused,
            field,
            error,
            last,
        })
}

fn actions() -> impl Strategy<Value = Action> {
    let flag = || mostly(false, &[true]);
    let counts = || prop_oneof![6 => 1..5_u32, 2 => Just(0), 1 => select(&[64, u32::MAX][..])];
    // vb2 takes the client's DONE and LAST for its own after a DQBUF that failed (videobuf2-v4l2.c:854), also
    // where the core answers and the device is not asked. Nobody passes both: the kernel never returns DONE.
    let dqbuf_flags = || flags().prop_map(|flags| flags & !buf_flag::DONE);
    prop_oneof![
        30 => (givens(), buffer_faults()).prop_map(|(given, fault)| Action::Qbuf { given, fault }),
        12 => (givens(), buffer_faults()).prop_map(|(given, fault)| Action::PrepareBuf { given, fault }),
        20 => completions().prop_map(Action::Complete),
        20 => (buf_types(), memories(), dqbuf_flags(), any::<u32>())
            .prop_map(|(buf_type, memory, flags, noise)| Action::Dqbuf { buf_type, memory, flags, noise }),
        8 => (buf_types(), flag()).prop_map(|(buf_type, fault)| Action::Streamon { buf_type, fault }),
        3 => (buf_types(), any::<bool>())
            .prop_map(|(buf_type, waiter_runs)| Action::Streamoff { buf_type, waiter_runs }),
        4 => (counts(), memories(), buf_types(), any::<u8>(), flag()).prop_map(
            |(count, memory, buf_type, flags, fault)| Action::Reqbufs { count, memory, buf_type, flags, fault }
        ),
        3 => (counts(), memories(), buf_types(), sizes(), any::<u32>(), flag()).prop_map(
            |(count, memory, buf_type, size, flags, fault)| Action::CreateBufs {
                count, memory, buf_type, size, flags, fault,
            }
        ),
        2 => (indices(), buf_types(), any::<u32>())
            .prop_map(|(index, buf_type, noise)| Action::Querybuf { index, buf_type, noise }),
        3 => Just(Action::ToggleWaiting),
        3 => (1..3_u64, 0..SLOTS).prop_map(|(client, slot)| Action::ToggleMapping { client, slot }),
        1 => Just(Action::Close),
        2 => (0..4_u32).prop_map(|count| Action::TheirReqbufs { count }),
        2 => select(&[Action::TheirStreamon, Action::TheirStreamoff, Action::TheirQbuf, Action::TheirClose][..]),
    ]
}

fn devices() -> impl Strategy<Value = Params> {
    let sizes = (
        select(&[4096_u32, 6000, 460_800][..]),
        2..7_u32,
        0..4_u32,
        0..3_u32,
    );
    let kinds = (
        select(&[0x2000_u32, 0x1_2000][..]),
        any::<bool>(),
        select(&[0, buf_cap::REQUESTS, buf_cap::REQUESTS | buf_cap::REMOVE_BUFS][..]),
        any::<bool>(),
        any::<bool>(),
    );
    (sizes, kinds).prop_map(|((sizeimage, max, min_reqbufs, min_queued), kinds)| Params {
        buf_type: RIGHT_TYPE,
        other_types: vec![buf_type::VIDEO_OVERLAY, buf_type::META_CAPTURE],
        io_modes: 0,
        sizeimage,
        max_num_buffers: max,
        min_reqbufs_allocation: min_reqbufs.min(max),
        min_queued_buffers: min_queued,
        timestamp_flags: kinds.0,
        allow_cache_hints: kinds.1,
        advertised: kinds.2,
        payload_at_prepare: kinds.3,
        timecodes: kinds.4,
    })
}

/// A call that is in order, as a client makes it that knows what it does.
fn proper(index: u32) -> Given {
    Given {
        index,
        buf_type: RIGHT_TYPE,
        memory: memory::USERPTR,
        pointer: SLOT_BASE + u64::from(index) % SLOTS * SLOT_SIZE,
        length: Length::Double,
        flags: 0,
        client: 1,
        noise: 0,
    }
}

fn proper_qbuf(index: u32) -> Action {
    Action::Qbuf {
        given: proper(index),
        fault: None,
    }
}

fn proper_dqbuf() -> Action {
    Action::Dqbuf {
        buf_type: RIGHT_TYPE,
        memory: memory::USERPTR,
        flags: 0,
        noise: 0,
    }
}

/// From nothing, or from whatever there was, to a queue that streams.
fn starts() -> impl Strategy<Value = Vec<Action>> {
    (2..5_u32).prop_map(|count| {
        let (buf_type, memory) = (RIGHT_TYPE, memory::USERPTR);
        let mut start = vec![
            Action::Streamoff {
                buf_type,
                waiter_runs: true,
            },
            Action::Reqbufs {
                count,
                memory,
                buf_type,
                flags: 0,
                fault: false,
            },
            Action::Streamon {
                buf_type,
                fault: false,
            },
        ];
        start.extend((0..count - 1).map(proper_qbuf));
        start
    })
}

/// A thread that slept in DQBUF when the stream was stopped, and does not get the processor before the buffers are
/// freed and others are asked for.
fn late_waiters() -> impl Strategy<Value = Vec<Action>> {
    (starts(), buf_types(), sizes(), 0..3_u32).prop_map(|(mut script, buf_type, size, count)| {
        let (right, memory) = (RIGHT_TYPE, memory::USERPTR);
        script.extend([
            Action::ToggleWaiting,
            Action::Streamoff {
                buf_type: right,
                waiter_runs: false,
            },
            Action::Reqbufs {
                count: 0,
                memory,
                buf_type: right,
                flags: 0,
                fault: false,
            },
            Action::CreateBufs {
                count,
                memory,
                buf_type,
                size,
                flags: 0,
                fault: false,
            },
        ]);
        script
    })
}

/// Single calls at random, between whole frames and fresh starts.
fn scripts() -> impl Strategy<Value = Vec<Action>> {
    let frame = (completions(), 0..4_u32)
        .prop_map(|(done, index)| vec![proper_qbuf(index), Action::Complete(done), proper_dqbuf()]);
    let piece = prop_oneof![
        30 => actions().prop_map(|action| vec![action]),
        6 => frame,
        1 => starts(),
        1 => late_waiters(),
    ];
    vec(piece, 0..50).prop_map(|pieces| pieces.concat())
}

fn cases() -> impl Strategy<Value = Case> {
    let opening = prop_oneof![
        4 => starts(),
        4 => (2..5_u32).prop_map(|count| vec![Action::Reqbufs {
            count, memory: memory::USERPTR, buf_type: RIGHT_TYPE, flags: 0, fault: false,
        }]),
        1 => Just(vec![]),
    ];
    let backing = select(&[memory::DMABUF, memory::MMAP][..]);
    (devices(), backing, any::<bool>(), opening, scripts()).prop_map(
        |(params, backing, try_import, mut opening, actions)| {
            opening.extend(actions);
            Case {
                params,
                backing,
                try_import,
                actions: opening,
            }
        },
    )
}

// The play.

struct Play {
    sizeimage: u32,
    reference: Vb2Model,
    subject: Subject,
    waiting: bool,
    unmapped: BTreeSet<(u64, u64)>,
    /// What each queued buffer must be delivered to.
    queued: BTreeMap<u32, Claim>,
    backing: u32,
    seen: Seen,
}

impl Play {
    fn new(case: &Case) -> Self {
        let native = Params {
            io_modes: buf_cap::USERPTR,
            ..case.params.clone()
        };
        let device = Params {
            io_modes: buf_cap::MMAP | buf_cap::DMABUF,
            ..case.params.clone()
        };
        Self {
            sizeimage: case.params.sizeimage,
            reference: Vb2Model::new(native),
            subject: Subject::new(Vb2Model::new(device), case.backing, case.try_import),
            waiting: false,
            unmapped: BTreeSet::new(),
            queued: BTreeMap::new(),
            seen: Seen::new(),
            backing: case.backing,
        }
    }

    fn length(&self, length: Length) -> u32 {
        match length {
            Length::Zero => 0,
            Length::Short => self.sizeimage - 1,
            Length::Exact => self.sizeimage,
            Length::Odd => self.sizeimage + 100,
            Length::Pages => self.sizeimage.next_multiple_of(4096),
            Length::Double => self.sizeimage * 2,
            Length::Huge => u32::MAX,
        }
    }

    fn buffer(&self, given: &Given) -> V4l2Buffer {
        V4l2Buffer {
            index: given.index,
            buf_type: given.buf_type,
            flags: given.flags,
            memory: given.memory,
            m: given.pointer,
            length: self.length(given.length),
            ..noisy(given.noise)
        }
    }

    fn step(&mut self, action: &Action) {
        match action {
            Action::Qbuf { given, fault } => self.give(given, *fault, false),
            Action::PrepareBuf { given, fault } => self.give(given, *fault, true),
            Action::Dqbuf {
                buf_type,
                memory,
                flags,
                noise,
            } => {
                let noisy = noisy(*noise);
                self.dqbuf(V4l2Buffer {
                    buf_type: *buf_type,
                    memory: *memory,
                    flags: *flags,
                    ..noisy
                });
            }
            Action::Complete(completion) => self.complete(*completion),
            Action::Streamon { buf_type, fault } => {
                self.set_fault(fault.then_some(Fault::StartStreaming));
                let (native, ours) = (
                    self.reference.streamon(OURS, *buf_type),
                    self.subject.streamon(*buf_type),
                );
                self.same("STREAMON", native, ours);
            }
            Action::Streamoff {
                buf_type,
                waiter_runs,
            } => {
                let native = self.reference.streamoff(OURS, *buf_type);
                let ours = self.subject.streamoff(*buf_type);
                self.same("STREAMOFF", native, ours);
                if native.is_ok() {
                    self.queued.clear();
                    self.set_waiting(self.waiting && !waiter_runs);
                }
            }
            Action::Reqbufs {
                count,
                memory,
                buf_type,
                flags,
                fault,
            } => {
                let (count, buf_type, memory) = (*count, *buf_type, *memory);
                let request = V4l2RequestBuffers {
                    count,
                    buf_type,
                    memory,
                    flags: *flags,
                    ..Default::default()
                };
                self.set_fault(fault.then_some(Fault::QueueSetup));
                self.reqbufs(request);
            }
            Action::CreateBufs {
                count,
                memory,
                buf_type,
                size,
                flags,
                fault,
            } => {
                self.set_fault(fault.then_some(Fault::QueueSetup));
                self.create_bufs(*count, *memory, *buf_type, self.length(*size), *flags);
            }
            Action::Querybuf {
                index,
                buf_type,
                noise,
            } => {
                self.querybuf(V4l2Buffer {
                    index: *index,
                    buf_type: *buf_type,
                    ..noisy(*noise)
                });
            }
            Action::ToggleWaiting => {
                // Nobody falls asleep in a queue that does not stream.
                if self.waiting || (self.reference.is_streaming() && self.reference.owner() == Some(OURS)) {
                    self.set_waiting(!self.waiting);
                }
            }
            Action::ToggleMapping { client, slot } => {
                if !self.unmapped.remove(&(*client, *slot)) {
                    self.unmapped.insert((*client, *slot));
                }
            }
            // A sleeper's call keeps its file open. In vb2 it also keeps other files from making buffers; in our
            // daemon no thread sleeps in the device, and so nobody is kept. Only until the sleeper runs.
            _ if self.waiting => {}
            Action::Close => {
                self.reference.close(OURS);
                self.subject.close();
                self.queued.clear();
            }
            theirs => {
                let native = Self::theirs(&mut self.reference, memory::USERPTR, theirs);
                assert_eq!(
                    native,
                    Self::theirs(&mut self.subject.device, self.backing, theirs),
                    "{theirs:?}"
                );
            }
        }
        self.set_fault(None);
        self.check();
    }

    /// A call of the second open file of the real device.
    fn theirs(device: &mut Vb2Model, memory: u32, action: &Action) -> Result<(), Errno> {
        let mut buffer = V4l2Buffer {
            buf_type: RIGHT_TYPE,
            memory,
            ..V4l2Buffer::default()
        };
        match action {
            Action::TheirReqbufs { count } => {
                let (count, buf_type) = (*count, RIGHT_TYPE);
                device.reqbufs(
                    THEIRS,
                    &mut V4l2RequestBuffers {
                        count,
                        buf_type,
                        memory,
                        ..Default::default()
                    },
                )
            }
            Action::TheirStreamon => device.streamon(THEIRS, RIGHT_TYPE),
            Action::TheirStreamoff => device.streamoff(THEIRS, RIGHT_TYPE),
            // Only where it is not theirs to queue: their pointer would be good, their fd would not.
            Action::TheirQbuf if device.owner() != Some(THEIRS) => {
                device.qbuf(THEIRS, &UserMemory::NONE, &mut buffer)
            }
            Action::TheirClose => {
                device.close(THEIRS);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The answers of both worlds to one call.
    fn same(&mut self, call: &'static str, native: Result<(), Errno>, ours: Result<(), Errno>) {
        assert_eq!(native, ours, "vb2's answer to {call}, and ours");
        *self.seen.entry((call, native.err())).or_default() += 1;
    }

    fn set_waiting(&mut self, waiting: bool) {
        self.waiting = waiting;
        self.reference.set_waiting(waiting);
        self.subject.core.set_waiting(waiting);
    }

    fn set_fault(&mut self, fault: Option<Fault>) {
        self.reference.fault = fault;
        self.subject.device.fault = fault;
    }

    fn reqbufs(&mut self, request: V4l2RequestBuffers) {
        let (mut native, mut ours) = (request, request);
        let result = self.reference.reqbufs(OURS, &mut native);
        let answer = self.subject.reqbufs(&mut ours);
        self.same("REQBUFS", result, answer);
        if result.is_ok() {
            native.capabilities = as_we_serve_it(native.capabilities);
        }
        assert_eq!(native, ours, "REQBUFS {request:?}");
        if self.reference.num_buffers() == 0 || result.is_ok() {
            self.queued.clear();
        }
    }

    fn create_bufs(&mut self, count: u32, memory: u32, buf_type: u32, size: u32, flags: u32) {
        // To an impossible request the core may say EBUSY for the sleeper where vb2 says EINVAL for the size: it
        // does not know which field of the format is the size (videobuf2-v4l2.c:795).
        if self.waiting && self.subject.core.is_empty() && size == 0 {
            return;
        }
        let mut fmt = [0; 200];
        fmt[20..24].copy_from_slice(&size.to_ne_bytes());
        let format = V4l2Format {
            buf_type,
            padding: 0,
            fmt,
        };
        let request = V4l2CreateBuffers {
            index: 77,
            count,
            memory,
            padding0: flags,
            format,
            capabilities: flags,
            flags,
            max_num_buffers: flags,
            reserved: [flags; 5],
        };
        let (mut native, mut ours) = (request, request);
        let result = self.reference.create_bufs(OURS, &mut native);
        let answer = self.subject.create_bufs(&mut ours);
        self.same("CREATE_BUFS", result, answer);
        if result.is_ok() {
            native.capabilities = as_we_serve_it(native.capabilities);
        }
        assert_eq!(native, ours, "CREATE_BUFS");
    }

    fn querybuf(&mut self, query: V4l2Buffer) {
        let (mut native, mut ours) = (query, query);
        let result = self.reference.querybuf(&mut native);
        let answer = self.subject.querybuf(&mut ours);
        self.same("QUERYBUF", result, answer);
        // Buffers of another file are what that file made them, and its memory is not the same in both worlds.
        if self.reference.owner() != Some(THEIRS) {
            assert_eq!(native, ours, "QUERYBUF {query:?}");
        }
    }

    fn give(&mut self, given: &Given, fault: Option<Fault>, is_prepare: bool) {
        self.set_fault(fault);
        let unmapped = &self.unmapped;
        let is_writable = |address: u64, length: u64| is_mapped(unmapped, given.client, address, length);
        let user = UserMemory {
            mm: given.client,
            is_writable: &is_writable,
        };
        let passed = self.buffer(given);
        let (mut native, mut ours) = (passed, passed);
        let (expected, got) = if is_prepare {
            (
                self.reference.prepare_buf(OURS, &user, &mut native),
                self.subject.prepare_buf(&user, &mut ours),
            )
        } else {
            (
                self.reference.qbuf(OURS, &user, &mut native),
                self.subject.qbuf(&user, &mut ours),
            )
        };
        let call = if is_prepare { "PREPARE_BUF" } else { "QBUF" };
        self.same(call, expected, got);
        assert_eq!(native, ours, "{call} {passed:?}");
        if expected.is_ok() && !is_prepare {
            let claim = pinned(&self.reference, given.index);
            assert_eq!(self.queued.insert(given.index, claim), None, "queued twice");
        }
    }

    fn dqbuf(&mut self, passed: V4l2Buffer) {
        let (mut native, mut ours) = (passed, passed);
        let expected = self.reference.dqbuf(OURS, &mut native);
        let got = self.subject.dqbuf(&mut ours);
        self.same("DQBUF", expected, got.map(|_| ()));
        assert_eq!(native, ours, "DQBUF {passed:?}");
        if let Ok(delivery) = got {
            let claim = self.queued.remove(&ours.index).expect("delivered twice");
            assert_eq!(delivery.claim, claim, "delivered to memory that was not queued");
            assert_eq!(
                delivery.bytes, native.bytesused,
                "delivered too much or too little"
            );
            assert!(delivery.bytes <= claim.length, "delivered beyond the end");
        }
    }

    /// A driver fills at most what it was given. Where the client gave more than the device has, it cannot fill
    /// that: sizeimage is enough for every frame, so no client may rely on more.
    fn complete(&mut self, mut done: Completion) {
        let lengths = (
            self.reference.oldest_active_length(),
            self.subject.device.oldest_active_length(),
        );
        assert_eq!(
            lengths.0.is_some(),
            lengths.1.is_some(),
            "one driver has a buffer, the other has none"
        );
        done.bytesused = done.bytesused.min(lengths.1.unwrap_or(0));
        self.reference.complete_oldest(done);
        self.subject.device.complete_oldest(done);
    }

    /// What must hold between any two calls.
    fn check(&mut self) {
        self.reference.assert_consistent();
        self.subject.device.assert_consistent();
        assert_eq!(self.reference.owner(), self.subject.device.owner(), "owner");
        assert_eq!(
            self.reference.num_buffers(),
            self.subject.device.num_buffers(),
            "number of buffers"
        );
        for index in 0..=self.reference.num_buffers() {
            self.querybuf(V4l2Buffer {
                index,
                buf_type: RIGHT_TYPE,
                ..V4l2Buffer::default()
            });
        }
        let ours = self.reference.owner() == Some(OURS);
        let core = &self.subject.core;
        assert_eq!(
            core.len(),
            if ours { self.reference.num_buffers() } else { 0 },
            "buffers of the core"
        );
        assert_eq!(
            core.is_streaming(),
            ours && self.reference.is_streaming(),
            "streaming"
        );
        let away = (0..core.len()).filter(|index| self.reference.state(*index) != State::Dequeued);
        let away: Vec<u32> = away.collect();
        assert_eq!(
            core.queued_buffers().collect::<Vec<_>>(),
            away,
            "queued buffers of the core"
        );
        assert_eq!(
            self.queued.keys().copied().collect::<Vec<_>>(),
            away,
            "a buffer was lost"
        );
        for index in &away {
            assert_eq!(
                self.subject.device.state(*index),
                self.reference.state(*index),
                "state of {index}"
            );
        }
        let held = (0..core.len()).filter(|index| self.reference.plane(*index).0 != Held::Nothing);
        let held: Vec<Claim> = held.map(|index| pinned(&self.reference, index)).collect();
        assert_eq!(self.subject.claims(), held, "claims of the core");
    }
}

/// The memory that vb2 has pinned for a buffer.
fn pinned(reference: &Vb2Model, index: u32) -> Claim {
    match reference.plane(index) {
        (Held::User { mm }, client_addr, length) => Claim {
            client: ClientKey(mm),
            client_addr,
            length,
        },
        other => panic!("buffer {index} holds {other:?}"),
    }
}

fn is_mapped(unmapped: &BTreeSet<(u64, u64)>, client: u64, address: u64, length: u64) -> bool {
    let Some(at) = address.checked_sub(SLOT_BASE) else {
        return false;
    };
    let slot = at / SLOT_SIZE;
    slot < SLOTS && at % SLOT_SIZE + length <= SLOT_SIZE && !unmapped.contains(&(client, slot))
}

/// A struct in which all that the kernel ignores or overwrites is anything.
fn noisy(noise: u32) -> V4l2Buffer {
    V4l2Buffer {
        index: noise,
        bytesused: noise,
        field: noise,
        padding0: noise,
        timestamp: [i64::from(noise), 5],
        timecode: [noise.to_ne_bytes()[0]; 16],
        sequence: noise,
        m: u64::from(noise) << 13,
        length: noise,
        reserved2: noise,
        request_fd: noise,
        padding1: noise,
        ..V4l2Buffer::default()
    }
}

/// What [`vidcompat_proto::queue::Queue::capabilities`] ought to make of the capabilities of a native queue.
fn as_we_serve_it(native: u32) -> u32 {
    let not_ours = buf_cap::MMAP | buf_cap::REQUESTS | buf_cap::MMAP_CACHE_HINTS;
    // The device underneath has DMABUF, whatever the native queue has.
    (native & !not_ours) | buf_cap::USERPTR | buf_cap::DMABUF
}

/// How often each call was answered with each result, over all cases.
type Seen = HashMap<(&'static str, Option<Errno>), u32>;

fn play(case: &Case, seen: &mut Seen) {
    let mut play = Play::new(case);
    for action in &case.actions {
        play.step(action);
    }
    for (answer, times) in play.seen {
        *seen.entry(answer).or_default() += times;
    }
}

#[test]
fn a_client_cannot_tell_our_queue_from_a_userptr_queue_of_vb2() {
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let config = Config {
        cases: config.cases.max(4096),
        ..config
    };
    let seen = RefCell::new(Seen::new());
    let outcome = TestRunner::new(config).run(&cases(), |case| {
        play(&case, &mut seen.borrow_mut());
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    // A test that no longer reaches these answers tests nothing.
    let answers: [(&str, &[Errno]); 8] = [
        ("REQBUFS", &[Errno::EINVAL, Errno::EBUSY]),
        ("CREATE_BUFS", &[Errno::EINVAL, Errno::EBUSY, Errno::ENOBUFS]),
        ("QUERYBUF", &[Errno::EINVAL]),
        ("PREPARE_BUF", &[Errno::EINVAL, Errno::EBUSY, Errno::EFAULT]),
        (
            "QBUF",
            &[
                Errno::EINVAL,
                Errno::EBUSY,
                Errno::EFAULT,
                Errno::EBADR,
                EOVERFLOW,
            ],
        ),
        (
            "DQBUF",
            &[Errno::EINVAL, Errno::EBUSY, Errno::EPIPE, Errno::EAGAIN],
        ),
        ("STREAMON", &[Errno::EINVAL, Errno::EBUSY]),
        ("STREAMOFF", &[Errno::EINVAL, Errno::EBUSY]),
    ];
    let seen = seen.into_inner();
    if std::env::var("SHOWSEEN").is_ok() {
        eprintln!("{seen:#?}");
    }
    for (call, errnos) in answers {
        for errno in errnos {
            assert!(
                seen.contains_key(&(call, Some(*errno))),
                "{call} was never answered with {errno}"
            );
        }
        assert!(
            seen.get(&(call, None)).is_some_and(|times| *times > 300),
            "{call} hardly ever succeeded"
        );
    }
}
