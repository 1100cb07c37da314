//! What the property test plays: scripts of calls of one or two clients, as data, and how they are made up.
//!
//! Valid arguments are frequent enough for streams of many frames, invalid ones for every check. Numbers that depend on
//! the queue (its type, its sizes) are said by what they mean.

use proptest::collection::vec;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use vidcompat_proto::abi::v4l2::{buf_cap, buf_flag, buf_type, memory};

use crate::vb2_model::{Completion, Fault, Params};

/// Stands in a script for the type of the queue.
pub const RIGHT_TYPE: u32 = 1000;

/// A client has some stretches of memory for each plane; which of them are mapped changes with time.
pub const SLOTS: u64 = 4;
pub const PLANES: usize = 3;
pub const SLOT_BASE: u64 = 0x7f00_0000_0000;
pub const SLOT_SIZE: u64 = 0x0100_0000;

#[derive(Clone, Debug)]
pub struct Case {
    pub params: Params,
    pub backing: u32,
    pub try_import: bool,
    pub actions: Vec<Action>,
}

/// What a client passes to QBUF and PREPARE_BUF.
#[derive(Clone, Debug)]
pub struct Given {
    pub index: u32,
    pub buf_type: u32,
    pub memory: u32,
    pub planes: [GivenPlane; PLANES],
    /// Which of them a multi-planar buffer begins with: the first may be any plane of it.
    pub turn: usize,
    pub array: Array,
    pub flags: u32,
    pub field: u32,
    pub client: u64,
    pub noise: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct GivenPlane {
    pub pointer: u64,
    pub length: Length,
    pub payload: Payload,
    pub data_offset: DataOffset,
}

/// How many planes a client passes to a multi-planar queue.
#[derive(Clone, Copy, Debug)]
pub enum Array {
    Right,
    None,
    Short,
    Long,
}

/// `bytesused`, by how it relates to what the driver needs and to the length.
#[derive(Clone, Copy, Debug)]
pub enum Payload {
    Zero,
    Size,
    Length,
    Some(u32),
    TooLarge,
}

/// `data_offset`. That of a good call lies where the device has memory for it, too.
#[derive(Clone, Copy, Debug)]
pub enum DataOffset {
    Zero,
    Small,
    End,
    Huge,
}

/// A length, by how it relates to what the driver needs.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    Zero,
    Short,
    Exact,
    Odd,
    Pages,
    Double,
    Huge,
}

impl Length {
    pub fn of(self, sizeimage: u32) -> u32 {
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
pub enum Action {
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
        plane: usize,
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
            0..PLANES,
            0..4_u32,
        )
    };
    (indices().prop_flat_map(planes), rest)
        .prop_map(
            |((index, mut planes, turn, style), (buf_type, memory, array, flags, field, client, noise))| {
                // Most often only one plane is special, else hardly a buffer of three would be good; sometimes the
                // others are merely new.
                if style < 3 {
                    let length = if style == 2 { Length::Pages } else { Length::Double };
                    let usual = proper(index).planes[0];
                    planes[1..].fill(GivenPlane { length, ..usual });
                }
                Given {
                    index,
                    buf_type,
                    memory,
                    planes,
                    turn,
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
        3 => (indices(), removed(), buf_types())
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
        planes: [plane; PLANES],
        turn: 0,
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

pub fn cases(buf_types: &'static [u32]) -> impl Strategy<Value = Case> {
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
