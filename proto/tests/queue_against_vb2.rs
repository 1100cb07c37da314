//! Our queue core against videobuf2: the same calls go to a model of vb2 that has USERPTR, and to our core over a
//! model of vb2 that has none; after every step a client must not be able to tell which it talks to.
#![allow(clippy::unwrap_used)] // a test may panic, that is how it fails

mod script;
mod subject;
mod vb2_model;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::test_runner::{Config, TestRunner};
use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{
    PlanarBuffer, V4l2Buffer, V4l2CreateBuffers, V4l2Format, V4l2Plane, V4l2RemoveBuffers,
    V4l2RequestBuffers, buf_cap, buf_type, memory,
};
use vidcompat_proto::queue::{Claim, ClientKey};

use script::{
    Action, Array, Case, DataOffset, Given, GivenPlane, Length, PLANES, Payload, RIGHT_TYPE, SLOT_BASE,
    SLOT_SIZE, SLOTS, cases,
};
use subject::{OURS, Subject};
use vb2_model::{Completion, EOVERFLOW, Fault, FileId, Held, Params, Plane, State, UserMemory, Vb2Model};

/// A second open file of the real device.
const THEIRS: FileId = FileId(2);
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
        let mut given_planes = given.planes;
        if self.params.sizes.len() > 1 {
            given_planes.rotate_left(given.turn);
        }
        let planes = self.params.sizes.iter().zip(&given_planes).zip(0..);
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
                let plane = (plane % self.params.sizes.len()) as u64;
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
    slot < SLOTS * PLANES as u64
        && at % SLOT_SIZE + length <= SLOT_SIZE
        && !unmapped.contains(&(client, slot))
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
        vec![plane; PLANES]
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
    *seen.entry(IMPORTED).or_default() += play.subject.imports;
    for (answer, times) in play.seen {
        *seen.entry(answer).or_default() += times;
    }
}

/// Planes that the device had by import of the client's own dma-buf.
const IMPORTED: (&str, Option<Errno>) = ("import", None);

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
    assert!(
        seen.get(&IMPORTED).is_some_and(|times| *times > 300),
        "hardly any import"
    );
    for (call, errnos) in answers {
        // Of the buffers that are to be removed one is often queued, or not there.
        let enough = if call == "REMOVE_BUFS" { 100 } else { 300 };
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
            seen.get(&(call, None)).is_some_and(|times| *times > enough),
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
