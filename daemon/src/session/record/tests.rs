//! What is written is what is read.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vidcompat_proto::abi::v4l2::{PlanarBuffer, V4l2Plane, buf_type, memory};
use vidcompat_proto::ioctl::QueueOp;
use vidcompat_proto::queue::{Claim, ClientKey, Queue};

use super::image::poll_handle;
use super::{ExportImage, ExportedPlane, Image, Lost, Opening, ReaderImage, View, WriterImage};
use crate::client::Clients;
use crate::memory::{BounceBuffer, Budget, Provider};
use crate::resolve::Importer;
use crate::session::ledger::{CallId, Done, Place, UnderWay};
use crate::session::passed::{Imported, Passed, Plane};
use crate::session::queues::{QueueState, Slot};
use crate::session::serve::Way;
use crate::survive::Store;
use crate::sys::{CpuUse, Mapping};

const CLAIM: Claim = Claim {
    client: ClientKey(7),
    client_addr: 0x7f00_1234_5678,
    length: 8192,
};

fn bounce(number: Option<u64>) -> BounceBuffer {
    let file = File::from(memfd_create(c"test", MFdFlags::empty()).expect("a memfd"));
    file.set_len(8192).expect("room in memory");
    let mapping = Mapping::shared(&file, 0, 8192, CpuUse::Read).expect("a mapping");
    let charge = Budget::new(1 << 20, 1 << 20).charge(42, 8192).expect("room");
    let Some(number) = number else {
        return BounceBuffer::from_device(mapping, charge);
    };
    let buffer = BounceBuffer::from_dma_buf(OwnedFd::from(file), mapping, charge);
    let kept = Store::none().kept("buffer.video64.1.5");
    buffer.keep(|_| Ok((number, kept))).expect("nothing fails");
    buffer
}

fn call(unique: u64) -> CallId {
    CallId {
        unique,
        is_resent: false,
    }
}

/// A queue of imported and copied memory, with requests that were and that were not answered.
fn userptr() -> QueueState {
    let mut queue = QueueState {
        provider: Some(Provider::DmaHeap),
        importer: Some(Importer::Scattered),
        refused: vec!["system".to_owned()],
        ..QueueState::default()
    };
    for index in [0, 3] {
        queue.core.allocated(index, buf_type::VIDEO_CAPTURE, &[4096], 0);
        let slot = Slot {
            planes: Some(Arc::new(vec![bounce(Some(5)), bounce(None)])),
            client: None,
            ways: Arc::new(vec![
                Arc::new(Way::inherited(CLAIM, true, Vec::new())),
                Arc::new(Way::inherited(CLAIM, false, Vec::new())),
            ]),
        };
        queue.slots.insert(index, slot);
    }
    queue.core.queued(3);
    queue.core.streamon();
    queue.ledger.given(QueueOp::Qbuf, 3, call(1 << 40));
    queue.ledger.returned(&returned(), call(18));
    queue.ledger.under_way = Some(UnderWay::Removing {
        by: 20,
        first: 1,
        count: 2,
    });
    queue.ledger.done = Some(Done {
        by: 16,
        answer: vec![1, 2, 3],
    });
    queue
}

fn returned() -> PlanarBuffer {
    let mut reply = PlanarBuffer::blank(buf_type::VIDEO_CAPTURE_MPLANE, 0);
    reply.head.timestamp = [-1, 5];
    reply.planes.truncate(2);
    reply.planes[1] = V4l2Plane {
        bytesused: 9,
        m: u64::MAX,
        ..V4l2Plane::default()
    };
    reply
}

fn passed() -> QueueState {
    let mut passed = Passed::new(memory::DMABUF, 4);
    passed.named_again(&[(1, 77)]);
    let imported = Imported {
        prepared: true,
        planes: vec![Plane::again(12, Some(34)), Plane::again(13, None)],
        request_fd: 5,
    };
    passed.imported.insert(2, imported);
    QueueState {
        passed: Some(passed),
        ..QueueState::default()
    }
}

fn written(capture: &QueueState, output: &QueueState) -> Vec<u8> {
    let clients = Clients::default();
    let view = View {
        opening: Opening {
            flags: libc::O_RDWR,
            uid: 1000,
            by: 6,
        },
        poll_handle: 99,
        tokens: &[(1000, [3; 16])],
        clients: &clients,
        next_number: 6,
        capture,
        output,
        event: Some(&(22, vec![4; 136])),
        reader: ReaderImage {
            room: Some((5000, Some(42))),
            filled: 4000,
            taken: 100,
            last: None,
        },
        writer: WriterImage {
            frame: Some(10),
            written: 4,
            ended: true,
            begun: Some(26),
            last: Some((24, 4)),
        },
        capabilities: &BTreeMap::from([(1, 0x1f), (2, 0)]),
        refuses_heap: true,
        tickets: &[(3, PLANE)],
        exports: &[export()],
        last_ticket: 300,
        once: None,
    };
    postcard::to_extend(&view, Vec::new()).expect("it can be written")
}

const PLANE: ExportedPlane = ExportedPlane {
    buf_type: 1,
    index: 2,
    plane: 0,
    flags: 0x80002,
};

fn export() -> ExportImage {
    ExportImage {
        st_dev: 11,
        inode: 1 << 33,
        exporter: "vivid".to_owned(),
        what: PLANE,
        name: 77,
    }
}

#[test]
fn a_session_is_read_as_it_was_written() {
    let bytes = written(&userptr(), &passed());
    assert_eq!(poll_handle(&bytes), Some(99));
    let image = Image::read(&bytes).expect("what was just written");
    assert_eq!((image.opening.uid, image.opening.by), (1000, 6));
    assert_eq!((image.next_number, image.last_ticket), (6, 300));
    assert_eq!(image.tokens, [(1000, [3; 16])]);
    assert_eq!(image.event, Some((22, vec![4; 136])));
    assert_eq!(image.reader.room, Some((5000, Some(42))));
    assert_eq!((image.reader.filled, image.reader.taken), (4000, 100));
    assert_eq!((image.writer.last, image.writer.begun), (Some((24, 4)), Some(26)));
    assert_eq!(image.capabilities, [(1, 0x1f), (2, 0)]);
    assert!(image.refuses_heap);
    assert_eq!(image.tickets, [(3, PLANE)]);
    assert_eq!(image.exports, [export()]);
}

#[test]
fn whose_memory_stands_in_a_buffer_is_written_down_although_it_was_forgotten() {
    let mut clients = Clients::default();
    let us = clients.of_thread(std::process::id()).expect("ourselves");
    let (mut capture, mut output) = (userptr(), userptr());
    for queue in [&mut capture, &mut output] {
        for slot in queue.slots.values_mut() {
            slot.client = Some(Arc::clone(us.client()));
        }
    }
    let image = Image::read(&written(&capture, &output)).expect("what was just written");
    let [client] = &image.clients[..] else {
        panic!("{:?}", image.clients);
    };
    assert_eq!(client.key, us.client().key());
    assert_eq!(image.capture.slots[0].client, Some(client.key));
    let pid = nix::unistd::Pid::from_raw(client.pid);
    let again = crate::client::Client::again(client.key, pid, client.identity).expect("it lives");
    assert_eq!(again.process(), nix::unistd::getpid());
}

#[test]
fn a_queue_is_read_as_it_was_written() {
    let image = Image::read(&written(&userptr(), &passed())).expect("what was just written");
    let queue = image.capture;
    assert_eq!(queue.provider, Some(Provider::DmaHeap));
    assert_eq!(queue.importer, Some(Importer::Scattered));
    assert_eq!(queue.refused, ["system"]);
    assert!(queue.core.is_streaming());
    assert_eq!(queue.core.queued_buffers().collect::<Vec<_>>(), [3]);
    let [first, second] = &queue.slots[..] else {
        panic!("{} slots", queue.slots.len());
    };
    assert_eq!((first.index, second.index, first.client), (0, 3, None));
    let planes = first.planes.as_ref().expect("planes");
    assert_eq!((planes[0].number, planes[1].number), (Some(5), None));
    assert_eq!((planes[0].size, planes[0].payer), (8192, Some(42)));
    assert_eq!((first.ways[0].claim, first.ways[0].is_imported), (CLAIM, true));
    assert!(!first.ways[1].is_imported);
    assert_eq!(queue.entries.len(), 2);
    let (by, reply) = queue.entries[0].returned.as_ref().expect("it was returned");
    assert_eq!((*by, reply.buffer()), (18, Some(returned())));
    assert_eq!(queue.entries[1].place, Place::Device);
    assert_eq!(queue.entries[1].given_by, 1 << 40);
    assert!(matches!(queue.under_way, Some(UnderWay::Removing { by: 20, .. })));
    assert_eq!(queue.done.map(|done| done.answer), Some(vec![1, 2, 3]));
    let other = image.output.passed.expect("it is passed");
    assert_eq!((other.memory, other.end), (memory::DMABUF, 4));
    assert_eq!(other.names, [(1, 77)]);
    assert_eq!(other.imported[0].planes, [(12, Some(34)), (13, None)]);
    assert_eq!((other.imported[0].index, other.imported[0].request_fd), (2, 5));
}

#[test]
fn a_queue_that_was_never_used_and_another_version() {
    let bytes = written(&QueueState::default(), &QueueState::default());
    let image = Image::read(&bytes).expect("what was just written");
    assert!(image.capture.core.is_empty() && image.capture.slots.is_empty());
    assert!(image.output.passed.is_none() && Queue::new().is_empty());
    let mut other = bytes.clone();
    other[0] += 1;
    assert!(matches!(Image::read(&other), Err(Lost::Version(4))));
    assert_eq!(poll_handle(&other), Some(99), "the same in all versions");
    other[0] = 0;
    assert!(matches!(Image::read(&other), Err(Lost::Unwritten)));
    assert!(matches!(Image::read(&bytes[..40]), Err(Lost::Spoilt(_))));
}
