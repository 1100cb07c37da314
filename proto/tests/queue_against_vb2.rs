//! Our queue core against videobuf2: the same calls go to a model of vb2 that has USERPTR, and to our core over a
//! model of vb2 that has none; after every step a client must not be able to tell which it talks to.
#![allow(clippy::unwrap_used)] // a test may panic, that is how it fails

mod subject;
mod vb2_model;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::collection::vec;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{
    PlanarBuffer, V4l2Buffer, V4l2CreateBuffers, V4l2Format, V4l2Plane, V4l2RemoveBuffers,
    V4l2RequestBuffers, buf_cap, buf_flag, buf_type, memory,
};
use vidcompat_proto::queue::{Claim, ClientKey};

use subject::{OURS, Subject};
use vb2_model::{Completion, EOVERFLOW, Fault, FileId, Held, Params, Plane, State, UserMemory, Vb2Model};

/// A second open file of the real device.
const THEIRS: FileId = FileId(2);
/// Stands in a script for the type of the queue.
const RIGHT_TYPE: u32 = 1000;

/// A client has some stretches of memory for each plane; which of them are mapped changes with time.
const SLOTS: u64 = 4;
const PLANES: u64 = 3;
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
    planes: [GivenPlane; PLANES as usize],
    array: Array,
    flags: u32,
    field: u32,
    client: u64,
    noise: u32,
}

#[derive(Clone, Copy, Debug)]
struct GivenPlane {
    pointer: u64,
    length: Length,
    payload: Payload,
    data_offset: DataOffset,
}

/// How many planes a client passes to a multi-planar queue.
#[derive(Clone, Copy, Debug)]
enum Array {
    Right,
    None,
    Short,
    Long,
}

/// `bytesused`, by how it relates to what the driver needs and to the length.
#[derive(Clone, Copy, Debug)]
enum Payload {
    Zero,
    Size,
    Length,
    Some(u32),
    TooLarge,
}

/// `data_offset`. That of a good call lies where the device has memory for it, too.
#[derive(Clone, Copy, Debug)]
enum DataOffset {
    Zero,
    Small,
    End,
    Huge,
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

impl Length {
    fn of(self, sizeimage: u32) -> u32 {
        match self {
            Length::Zero => 0,
            Length::Short => sizeimage - 1,
            Length::Exact => sizeimage,
            Length::Odd => sizeimage + 100,
            Length::Pages => sizeimage.next_multiple_of(4096),
            Length::Double => sizeimage * 2,
            Length::Huge => u32::MAX,
        }
    }
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
    RemoveBufs {
        index: u32,
        count: u32,
        buf_type: u32,
    },
    Querybuf {
        index: u32,
        buf_type: u32,
        array: Array,
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
        array: Array,
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
        plane: u64,
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
        1 => select(&[buf_flag::TIMECODE, buf_flag::M2M_HOLD_CAPTURE_BUF, buf_flag::LAST, 0x1_0008][..]),
    ]
}

fn arrays() -> impl Strategy<Value = Array> {
    prop_oneof![30 => Just(Array::Right), 3 => Just(Array::Long), 1 => Just(Array::Short), 1 => Just(Array::None)]
}

fn fields() -> impl Strategy<Value = u32> {
    prop_oneof![20 => 0..5_u32, 1 => Just(7), 1 => any::<u32>()]
}

fn payloads() -> impl Strategy<Value = Payload> {
    prop_oneof![
        4 => Just(Payload::Zero),
        8 => Just(Payload::Size),
        4 => Just(Payload::Length),
        4 => (1..5000_u32).prop_map(Payload::Some),
        1 => Just(Payload::TooLarge),
    ]
}

fn data_offsets() -> impl Strategy<Value = DataOffset> {
    prop_oneof![
        20 => Just(DataOffset::Zero),
        5 => Just(DataOffset::Small),
        1 => select(&[DataOffset::End, DataOffset::Huge][..]),
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

fn pointers(index: u32) -> BoxedStrategy<u64> {
    let own = SLOT_BASE + u64::from(index) % SLOTS * SLOT_SIZE;
    prop_oneof![
        20 => Just(own),
        4 => (0..SLOTS, select(&[0_u64, 8, 0x1234][..])).prop_map(|(slot, at)| SLOT_BASE + slot * SLOT_SIZE + at),
        // Null, never mapped, the end of a slot, a kernel address, a range that wraps or ends with all memory.
        1 => select(&[0, 0x1000, SLOT_BASE + SLOT_SIZE - 100, 0xffff_8880_0000_0000, u64::MAX - 4095, u64::MAX][..]),
    ]
    .boxed()
}

fn planes(index: u32) -> BoxedStrategy<GivenPlane> {
    (pointers(index), lengths(), payloads(), data_offsets())
        .prop_map(|(pointer, length, payload, data_offset)| GivenPlane {
            pointer,
            length,
            payload,
            data_offset,
        })
        .boxed()
}

fn givens() -> BoxedStrategy<Given> {
    let client = prop_oneof![8 => Just(1_u64), 1 => Just(2_u64)];
    let rest = (
        buf_types(),
        memories(),
        arrays(),
        flags(),
        fields(),
        client,
        any::<u32>(),
    );
    let planes = |index| {
        (
            Just(index),
            [planes(index), planes(index), planes(index)],
            any::<bool>(),
        )
    };
    (indices().prop_flat_map(planes), rest)
        .prop_map(
            |((index, mut planes, one), (buf_type, memory, array, flags, field, client, noise))| {
                // Often only the first plane is special, else hardly a buffer of three would be good.
                if one {
                    planes[1..].copy_from_slice(&proper(index).planes[1..]);
                }
                Given {
                    index,
                    buf_type,
                    memory,
                    planes,
                    array,
                    flags,
                    field,
                    client,
                    noise,
                }
            },
        )
        .boxed()
}

fn buffer_faults() -> impl Strategy<Value = Option<Fault>> {
    mostly(None, &[Some(Fault::BufPrepare), Some(Fault::StartStreaming)])
}

fn completions() -> BoxedStrategy<Completion> {
    let bytesused = || prop_oneof![3 => Just(u32::MAX), 3 => 0..20_000_u32, 1 => Just(0)];
    (
        [bytesused(), bytesused(), bytesused()],
        0..5_u32,
        any::<u32>(),
        mostly(false, &[true]),
        prop_oneof![60 => Just(false), 1 => Just(true)],
    )
        .prop_map(|(bytesused, field, copied, error, last)| Completion {
            bytesused,
            field,
            copied,
            error,
            last,
        })
        .boxed()
}

/// How many buffers REMOVE_BUFS removes.
fn removed() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 1..3_u32, 2 => 3..8_u32, 1 => select(&[0, u32::MAX][..])]
}

fn actions() -> BoxedStrategy<Action> {
    let flag = || mostly(false, &[true]);
    let counts = || prop_oneof![6 => 1..5_u32, 2 => Just(0), 1 => select(&[64, u32::MAX][..])];
    // vb2 takes the client's DONE and LAST for its own after a DQBUF that failed (videobuf2-v4l2.c:854), also
    // where the core answers and the device is not asked. Nobody passes both: the kernel never returns DONE.
    let dqbuf_flags = || flags().prop_map(|flags| flags & !buf_flag::DONE);
    prop_oneof![
        30 => (givens(), buffer_faults()).prop_map(|(given, fault)| Action::Qbuf { given, fault }),
        12 => (givens(), buffer_faults()).prop_map(|(given, fault)| Action::PrepareBuf { given, fault }),
        20 => completions().prop_map(Action::Complete),
        20 => (buf_types(), memories(), arrays(), dqbuf_flags(), any::<u32>()).prop_map(
            |(buf_type, memory, array, flags, noise)| Action::Dqbuf { buf_type, memory, array, flags, noise }
        ),
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
        2 => (indices(), buf_types(), arrays(), any::<u32>())
            .prop_map(|(index, buf_type, array, noise)| Action::Querybuf { index, buf_type, array, noise }),
        2 => (indices(), removed(), buf_types())
            .prop_map(|(index, count, buf_type)| Action::RemoveBufs { index, count, buf_type }),
        3 => Just(Action::ToggleWaiting),
        3 => (1..3_u64, 0..SLOTS, 0..PLANES)
            .prop_map(|(client, slot, plane)| Action::ToggleMapping { client, slot, plane }),
        1 => Just(Action::Close),
        2 => (0..4_u32).prop_map(|count| Action::TheirReqbufs { count }),
        2 => select(&[Action::TheirStreamon, Action::TheirStreamoff, Action::TheirQbuf, Action::TheirClose][..]),
    ]
    .boxed()
}

fn devices(buf_type: u32) -> BoxedStrategy<Params> {
    let size = || select(&[4096_u32, 6000, 460_800][..]);
    let planes = if buf_type::is_multi_planar(buf_type) {
        1..=3
    } else {
        1..=1_usize
    };
    let sizes = (
        vec(size(), planes),
        2..7_u32,
        0..4_u32,
        0..3_u32,
        select(&[0_u32, 64][..]),
    );
    let kinds = (
        select(&[0x2000_u32, 0x1_2000, buf_flag::TIMESTAMP_COPY][..]),
        any::<bool>(),
        select(&[0, buf_cap::REQUESTS, buf_cap::REQUESTS | buf_cap::REMOVE_BUFS][..]),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    );
    (sizes, kinds)
        .prop_map(
            move |((sizes, max, min_reqbufs, min_queued, data_offset), kinds)| Params {
                buf_type,
                other_types: vec![buf_type::VIDEO_OVERLAY, buf_type::META_CAPTURE],
                io_modes: 0,
                sizes,
                max_num_buffers: max,
                min_reqbufs_allocation: min_reqbufs.min(max),
                min_queued_buffers: min_queued,
                timestamp_flags: kinds.0,
                allow_cache_hints: kinds.1,
                advertised: kinds.2,
                allow_zero_bytesused: kinds.5,
                holds_capture: kinds.6,
                payload_at_prepare: kinds.3,
                // What takes nothing for the end of the stream cannot ask for a whole picture.
                checks_payload: kinds.4 && !kinds.5,
                data_offset,
                // A driver that copies stamps makes no timecodes of its own.
            timecodes: kinds.4 && kinds.0 != buf_flag::TIMESTAMP_COPY,
            },
        )
        .boxed()
}

/// A call that is in order, as a client makes it that knows what it does.
fn proper(index: u32) -> Given {
    let plane = GivenPlane {
        pointer: SLOT_BASE + u64::from(index) % SLOTS * SLOT_SIZE,
        length: Length::Double,
        payload: Payload::Size,
        data_offset: DataOffset::Zero,
    };
    Given {
        index,
        buf_type: RIGHT_TYPE,
        memory: memory::USERPTR,
        planes: [plane; PLANES as usize],
        array: Array::Right,
        flags: 0,
        field: 1,
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
        array: Array::Right,
        flags: 0,
        noise: 0,
    }
}

/// From nothing, or from whatever there was, to a queue that streams.
fn starts() -> BoxedStrategy<Vec<Action>> {
    (2..5_u32)
        .prop_map(|count| {
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
        .boxed()
}

/// A thread that slept in DQBUF when the stream was stopped, and does not get the processor before the buffers are
/// freed and others are asked for.
fn late_waiters() -> BoxedStrategy<Vec<Action>> {
    (starts(), buf_types(), sizes(), 0..3_u32)
        .prop_map(|(mut script, buf_type, size, count)| {
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
        .boxed()
}

/// Single calls at random, between whole frames and fresh starts.
fn scripts() -> BoxedStrategy<Vec<Action>> {
    let frame = (completions(), 0..4_u32)
        .prop_map(|(done, index)| vec![proper_qbuf(index), Action::Complete(done), proper_dqbuf()]);
    let piece = prop_oneof![
        30 => actions().prop_map(|action| vec![action]),
        6 => frame,
        1 => starts(),
        1 => late_waiters(),
        1 => replacements(),
    ];
    vec(piece, 0..50).prop_map(|pieces| pieces.concat()).boxed()
}

/// Buffers are removed, and others are made where there is room.
fn replacements() -> BoxedStrategy<Vec<Action>> {
    (0..4_u32, 1..4_u32, 1..5_u32, sizes())
        .prop_map(|(index, removed, count, size)| {
            vec![
                Action::RemoveBufs {
                    index,
                    count: removed,
                    buf_type: RIGHT_TYPE,
                },
                Action::CreateBufs {
                    count,
                    memory: memory::USERPTR,
                    buf_type: RIGHT_TYPE,
                    size,
                    flags: 0,
                    fault: false,
                },
            ]
        })
        .boxed()
}

fn cases(buf_types: &'static [u32]) -> impl Strategy<Value = Case> {
    let opening = prop_oneof![
        4 => starts(),
        4 => (2..5_u32).prop_map(|count| vec![Action::Reqbufs {
            count, memory: memory::USERPTR, buf_type: RIGHT_TYPE, flags: 0, fault: false,
        }]),
        1 => Just(vec![]),
    ];
    let backing = select(&[memory::DMABUF, memory::MMAP][..]);
    let devices = select(buf_types).prop_flat_map(devices);
    (devices, backing, any::<bool>(), opening, scripts()).prop_map(
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
    params: Params,
    reference: Vb2Model,
    subject: Subject,
    waiting: bool,
    unmapped: BTreeSet<(u64, u64)>,
    /// What each queued buffer must be delivered to.
    queued: BTreeMap<u32, Vec<Claim>>,
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
            params: case.params.clone(),
            reference: Vb2Model::new(native),
            subject: Subject::new(Vb2Model::new(device), case.backing, case.try_import),
            waiting: false,
            unmapped: BTreeSet::new(),
            queued: BTreeMap::new(),
            seen: Seen::new(),
            backing: case.backing,
        }
    }

    /// The number that stands for a type in a script.
    fn kind(&self, buf_type: u32) -> u32 {
        if buf_type == RIGHT_TYPE {
            self.params.buf_type
        } else {
            buf_type
        }
    }

    /// As many planes as a client passes.
    fn array(&self, array: Array) -> usize {
        let planes = self.params.sizes.len();
        match array {
            Array::Right => planes,
            Array::None => 0,
            Array::Short => planes - 1,
            Array::Long => planes + 2,
        }
    }

    /// A buffer with an array of planes, if its type has one.
    fn with_planes(&self, head: V4l2Buffer, array: Array, planes: &[V4l2Plane]) -> PlanarBuffer {
        if !buf_type::is_multi_planar(head.buf_type) {
            return PlanarBuffer {
                head,
                planes: planes[..1].to_vec(),
            };
        }
        let mut planes = planes.to_vec();
        planes.resize(self.array(array), planes[0]);
        let length = u32::try_from(planes.len()).unwrap();
        PlanarBuffer {
            head: V4l2Buffer { length, ..head },
            planes,
        }
    }

    fn buffer(&self, given: &Given) -> PlanarBuffer {
        let head = V4l2Buffer {
            index: given.index,
            buf_type: self.kind(given.buf_type),
            flags: given.flags,
            field: given.field,
            memory: given.memory,
            ..noisy(given.noise)
        };
        let planes = self.params.sizes.iter().zip(&given.planes).zip(0..);
        let planes: Vec<V4l2Plane> = planes
            .map(|((size, plane), at)| self.plane(*size, plane, at, given.noise))
            .collect();
        self.with_planes(head, given.array, &planes)
    }

    fn plane(&self, size: u32, plane: &GivenPlane, at: u64, noise: u32) -> V4l2Plane {
        let slots = SLOT_BASE..SLOT_BASE + SLOTS * SLOT_SIZE;
        let shift = if slots.contains(&plane.pointer) {
            at * SLOTS * SLOT_SIZE
        } else {
            0
        };
        let length = plane.length.of(size);
        let output = buf_type::is_output(self.params.buf_type);
        let bytesused = match plane.payload {
            Payload::Zero => 0,
            Payload::Size => size.min(length),
            Payload::Length => length,
            Payload::Some(bytes) => bytes.min(length),
            Payload::TooLarge => length.saturating_add(1),
        };
        // Where the driver puts the size of its pictures in place of the payload, nobody can say whether it has, if
        // that is all the memory that there is behind the client's.
        let bytesused = if output && self.params.payload_at_prepare && bytesused <= length {
            match bytesused {
                0 => size.min(length),
                bytesused => bytesused.min(size),
            }
        } else {
            bytesused
        };
        let data_offset = match plane.data_offset {
            // And a driver that counts from there may need more than there is.
            DataOffset::Small if !self.params.checks_payload => 64,
            DataOffset::Zero | DataOffset::Small => 0,
            DataOffset::End if bytesused == 0 => length,
            DataOffset::End => bytesused,
            DataOffset::Huge => u32::MAX,
        };
        let is_multi_planar = buf_type::is_multi_planar(self.params.buf_type);
        V4l2Plane {
            bytesused: if output { bytesused } else { noise },
            length,
            m: plane.pointer + shift,
            data_offset: if is_multi_planar { data_offset } else { 0 },
            reserved: if is_multi_planar { [noise; 11] } else { [0; 11] },
        }
    }

    fn step(&mut self, action: &Action) {
        match action {
            Action::Qbuf { given, fault } => self.give(given, *fault, false),
            Action::PrepareBuf { given, fault } => self.give(given, *fault, true),
            Action::Dqbuf {
                buf_type,
                memory,
                array,
                flags,
                noise,
            } => {
                let head = V4l2Buffer {
                    buf_type: self.kind(*buf_type),
                    memory: *memory,
                    flags: *flags,
                    ..noisy(*noise)
                };
                self.dqbuf(&self.with_planes(head, *array, &noisy_planes(*noise, head.buf_type)));
            }
            Action::Complete(completion) => self.complete(*completion),
            Action::Streamon { buf_type, fault } => {
                self.set_fault(fault.then_some(Fault::StartStreaming));
                let buf_type = self.kind(*buf_type);
                let (native, ours) = (
                    self.reference.streamon(OURS, buf_type),
                    self.subject.streamon(buf_type),
                );
                self.same("STREAMON", native, ours);
            }
            Action::Streamoff {
                buf_type,
                waiter_runs,
            } => {
                let buf_type = self.kind(*buf_type);
                let native = self.reference.streamoff(OURS, buf_type);
                let ours = self.subject.streamoff(buf_type);
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
                let (count, buf_type, memory) = (*count, self.kind(*buf_type), *memory);
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
                self.create_bufs(*count, *memory, self.kind(*buf_type), *size, *flags);
            }
            Action::Querybuf {
                index,
                buf_type,
                array,
                noise,
            } => {
                let head = V4l2Buffer {
                    index: *index,
                    buf_type: self.kind(*buf_type),
                    ..noisy(*noise)
                };
                self.querybuf(&self.with_planes(head, *array, &noisy_planes(*noise, head.buf_type)));
            }
            Action::RemoveBufs {
                index,
                count,
                buf_type,
            } => {
                let request = V4l2RemoveBuffers {
                    index: *index,
                    count: *count,
                    buf_type: self.kind(*buf_type),
                    ..Default::default()
                };
                let native = self.reference.remove_bufs(OURS, &request);
                let ours = self.subject.remove_bufs(&request);
                self.same("REMOVE_BUFS", native, ours);
            }
            Action::ToggleWaiting => {
                // Nobody falls asleep in a queue that does not stream.
                if self.waiting || (self.reference.is_streaming() && self.reference.owner() == Some(OURS)) {
                    self.set_waiting(!self.waiting);
                }
            }
            Action::ToggleMapping { client, slot, plane } => {
                let plane = plane % self.params.sizes.len() as u64;
                let slot = (*client, plane * SLOTS + slot);
                if !self.unmapped.remove(&slot) {
                    self.unmapped.insert(slot);
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
        let right = device.buf_type();
        let mut buffer = PlanarBuffer::blank(right, 0);
        buffer.head.memory = memory;
        match action {
            Action::TheirReqbufs { count } => {
                let (count, buf_type) = (*count, right);
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
            Action::TheirStreamon => device.streamon(THEIRS, right),
            Action::TheirStreamoff => device.streamoff(THEIRS, right),
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

    fn create_bufs(&mut self, count: u32, memory: u32, buf_type: u32, size: Length, flags: u32) {
        // To an impossible request the core may say EBUSY for the sleeper where vb2 says EINVAL for the size: it
        // does not know which field of the format is the size (videobuf2-v4l2.c:795).
        if self.waiting && self.subject.core.is_empty() && matches!(size, Length::Zero) {
            return;
        }
        let mut fmt = [0; 200];
        for (plane, needed) in fmt[20..].chunks_exact_mut(20).zip(&self.params.sizes) {
            plane[..4].copy_from_slice(&size.of(*needed).to_ne_bytes());
        }
        fmt[180] = u8::try_from(self.params.sizes.len()).unwrap();
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

    fn querybuf(&mut self, query: &PlanarBuffer) {
        let (mut native, mut ours) = (query.clone(), query.clone());
        let result = self.reference.querybuf(&mut native);
        let answer = self.subject.querybuf(&mut ours);
        self.same("QUERYBUF", result, answer);
        // Buffers of another file are what that file made them, and its memory is not the same in both worlds.
        if self.reference.owner() != Some(THEIRS) {
            assert_eq!(travels(native), travels(ours), "QUERYBUF {query:?}");
        }
    }

    fn give(&mut self, given: &Given, fault: Option<Fault>, is_prepare: bool) {
        let mut passed = self.buffer(given);
        self.enough_after_a_refusal(&mut passed);
        // A single-planar OUTPUT dma-buf that a driver refuses is let go, and for the next one vb2 lets no payload
        // through but zero, which to a driver with `allow_zero_bytesused` means the end.
        let ends = self.params.allow_zero_bytesused && buf_type::is_output(self.params.buf_type);
        self.set_fault(fault.filter(|fault| *fault != Fault::BufPrepare || !ends));
        let unmapped = &self.unmapped;
        let is_accessible = |address: u64, length: u64| is_mapped(unmapped, given.client, address, length);
        let user = UserMemory {
            mm: given.client,
            is_accessible: &is_accessible,
        };
        let (mut native, mut ours) = (passed.clone(), passed.clone());
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
        assert_eq!(travels(native), travels(ours), "{call} {passed:?}");
        if expected.is_ok() {
            let claims = pinned(&self.reference, given.index);
            assert_eq!(
                self.subject.given, claims,
                "the device has other memory than the client gave"
            );
            if !is_prepare {
                assert_eq!(self.queued.insert(given.index, claims), None, "queued twice");
            }
        }
    }

    /// A single-planar OUTPUT dma-buf that a driver refuses is let go, and of the next one vb2 compares the payload
    /// with the length of none (videobuf2-v4l2.c:117): the core must pass zero, which means all, and a driver that
    /// refuses too little cannot tell.
    fn enough_after_a_refusal(&self, passed: &mut PlanarBuffer) {
        let device = &self.subject.device;
        let index = passed.head.index;
        if self.params.checks_payload
            && self.params.buf_type == buf_type::VIDEO_OUTPUT
            && device.indices().any(|known| known == index)
            && device.planes(index)[0].length == 0
        {
            let plane = &mut passed.planes[0];
            plane.bytesused = plane.bytesused.max(self.params.sizes[0]);
        }
    }

    fn dqbuf(&mut self, passed: &PlanarBuffer) {
        let (mut native, mut ours) = (passed.clone(), passed.clone());
        let expected = self.reference.dqbuf(OURS, &mut native);
        let got = self.subject.dqbuf(&mut ours);
        self.same(
            "DQBUF",
            expected,
            got.as_ref().map(|_| ()).map_err(|errno| *errno),
        );
        assert_eq!(travels(native.clone()), travels(ours.clone()), "DQBUF {passed:?}");
        let Ok(deliveries) = got else { return };
        let claims = self.queued.remove(&ours.head.index).expect("delivered twice");
        if buf_type::is_output(self.params.buf_type) {
            assert_eq!(deliveries, [], "the client's picture is the client's");
            return;
        }
        assert_eq!(deliveries.len(), claims.len(), "a plane was forgotten");
        for ((delivery, claim), plane) in deliveries.iter().zip(&claims).zip(&native.planes) {
            assert_eq!(delivery.claim, *claim, "delivered to memory that was not queued");
            assert_eq!(
                delivery.bytes, plane.bytesused,
                "delivered too much or too little"
            );
            assert!(delivery.bytes <= claim.length, "delivered beyond the end");
        }
    }

    /// A driver fills at most what it was given. Where the client gave more than the device has, it cannot fill
    /// that: sizeimage is enough for every frame, so no client may rely on more.
    fn complete(&mut self, mut done: Completion) {
        let lengths = (
            self.reference.oldest_active_lengths(),
            self.subject.device.oldest_active_lengths(),
        );
        assert_eq!(
            lengths.0.is_some(),
            lengths.1.is_some(),
            "one driver has a buffer, the other has none"
        );
        for (bytesused, length) in done.bytesused.iter_mut().zip(lengths.1.unwrap_or_default()) {
            *bytesused = (*bytesused).min(length);
        }
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
        let indices: Vec<u32> = self.reference.indices().collect();
        assert_eq!(
            self.subject.device.indices().collect::<Vec<_>>(),
            indices,
            "the buffers that there are"
        );
        for index in 0..=indices.last().map_or(0, |last| last + 1) {
            self.querybuf(&PlanarBuffer::blank(self.params.buf_type, index));
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
        let indices = if ours { indices } else { Vec::new() };
        assert!(
            indices.iter().all(|index| core.has(*index)),
            "buffers of the core"
        );
        let away = indices.iter().copied();
        let away: Vec<u32> = away
            .filter(|index| self.reference.state(*index) != State::Dequeued)
            .collect();
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
        let held = indices.iter().filter(|index| {
            let planes = self.reference.planes(**index);
            planes.iter().any(|plane| plane.held != Held::Nothing)
        });
        let held: Vec<Claim> = held.flat_map(|index| pinned(&self.reference, *index)).collect();
        assert_eq!(self.subject.claims(), held, "claims of the core");
    }
}

/// The memory that vb2 has pinned for a buffer.
fn pinned(reference: &Vb2Model, index: u32) -> Vec<Claim> {
    let claim = |plane: &Plane| match plane.held {
        Held::User { mm } => Claim {
            client: ClientKey(mm),
            client_addr: plane.m,
            length: plane.length,
        },
        other => panic!("buffer {index} holds {other:?}"),
    };
    reference.planes(index).iter().map(claim).collect()
}

/// What of a buffer travels: of a single-planar one the struct, of a multi-planar one the planes as well.
fn travels(buffer: PlanarBuffer) -> (V4l2Buffer, Vec<V4l2Plane>) {
    let head = buffer.to_head();
    if buffer.is_multi_planar() {
        (head, buffer.planes)
    } else {
        (head, Vec::new())
    }
}

fn is_mapped(unmapped: &BTreeSet<(u64, u64)>, client: u64, address: u64, length: u64) -> bool {
    let Some(at) = address.checked_sub(SLOT_BASE) else {
        return false;
    };
    let slot = at / SLOT_SIZE;
    slot < SLOTS * PLANES && at % SLOT_SIZE + length <= SLOT_SIZE && !unmapped.contains(&(client, slot))
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

/// Planes in which all is anything; of a single-planar buffer the one that is a view of it.
fn noisy_planes(noise: u32, buf_type: u32) -> Vec<V4l2Plane> {
    let plane = V4l2Plane {
        bytesused: noise,
        length: noise,
        m: u64::from(noise) << 13,
        data_offset: noise,
        reserved: [noise; 11],
    };
    if buf_type::is_multi_planar(buf_type) {
        vec![plane; PLANES as usize]
    } else {
        PlanarBuffer::single(noisy(noise)).planes
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

/// Plays scripts on queues of `buf_types`.
fn play_all(buf_types: &'static [u32], cases_at_least: u32) {
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let config = Config {
        cases: config.cases.max(cases_at_least),
        ..config
    };
    let seen = RefCell::new(Seen::new());
    let outcome = TestRunner::new(config).run(&cases(buf_types), |case| {
        play(&case, &mut seen.borrow_mut());
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    // A test that no longer reaches these answers tests nothing.
    let answers: [(&str, &[Errno]); 9] = [
        ("REQBUFS", &[Errno::EINVAL, Errno::EBUSY]),
        ("CREATE_BUFS", &[Errno::EINVAL, Errno::EBUSY, Errno::ENOBUFS]),
        ("REMOVE_BUFS", &[Errno::EINVAL, Errno::EBUSY]),
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
            // Only a capture queue has a last buffer.
            if *errno == Errno::EPIPE && buf_types.iter().all(|buf_type| buf_type::is_output(*buf_type)) {
                continue;
            }
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

#[test]
fn a_client_cannot_tell_our_queue_from_a_userptr_queue_of_vb2() {
    play_all(&[buf_type::VIDEO_CAPTURE], 4096);
}

#[test]
fn nor_our_output_queue_from_one_of_vb2() {
    play_all(&[buf_type::VIDEO_OUTPUT], 2048);
}

#[test]
fn nor_our_multi_planar_queues_from_those_of_vb2() {
    play_all(
        &[buf_type::VIDEO_CAPTURE_MPLANE, buf_type::VIDEO_OUTPUT_MPLANE],
        3072,
    );
}
