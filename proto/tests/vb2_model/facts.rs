//! The model against what was measured on real kernels (KERNEL.md B2, B3, B7; vivid, Linux 6.12).
//!
//! Each fact is one call, or a few, and the result that vivid gave.

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{
    PlanarBuffer, V4l2Buffer, V4l2CreateBuffers, V4l2Format, V4l2RequestBuffers, buf_cap, buf_flag, buf_type,
    memory,
};

use super::{Completion, FileId, Params, UserMemory, Vb2Model};

const SIZE: u32 = 460_800;
const FD: i32 = 7;
const POINTER: u64 = 0x7f12_3456_7000;
const FILE: FileId = FileId(1);
const CAPTURE: u32 = buf_type::VIDEO_CAPTURE;
const MINE: UserMemory<'static> = UserMemory {
    mm: 1,
    is_accessible: &|address, _| address == POINTER,
};

fn vivid() -> Vb2Model {
    let mut model = Vb2Model::new(Params {
        buf_type: CAPTURE,
        other_types: Vec::new(),
        io_modes: buf_cap::MMAP | buf_cap::USERPTR | buf_cap::DMABUF,
        sizes: vec![SIZE],
        max_num_buffers: 64,
        min_reqbufs_allocation: 2,
        min_queued_buffers: 1,
        timestamp_flags: 0x2000,
        allow_cache_hints: false,
        advertised: buf_cap::REQUESTS | buf_cap::REMOVE_BUFS,
        allow_zero_bytesused: false,
        holds_capture: false,
        payload_at_prepare: true,
        checks_payload: true,
        data_offset: 0,
        timecodes: false,
    });
    model.dma_bufs.push((FD, 462_848));
    model
}

fn request(memory: u32, count: u32) -> V4l2RequestBuffers {
    V4l2RequestBuffers {
        count,
        buf_type: CAPTURE,
        memory,
        ..V4l2RequestBuffers::default()
    }
}

/// vivid after REQBUFS.
fn vivid_with(memory: u32, count: u32) -> Vb2Model {
    let mut model = vivid();
    model.reqbufs(FILE, &mut request(memory, count)).unwrap();
    model
}

fn user_buffer(m: u64, length: u32) -> V4l2Buffer {
    V4l2Buffer {
        buf_type: CAPTURE,
        memory: memory::USERPTR,
        m,
        length,
        ..V4l2Buffer::default()
    }
}

fn good() -> V4l2Buffer {
    user_buffer(POINTER, SIZE)
}

fn qbuf(model: &mut Vb2Model, buffer: V4l2Buffer) -> Result<V4l2Buffer, Errno> {
    let mut buffer = PlanarBuffer::single(buffer);
    model.qbuf(FILE, &MINE, &mut buffer).map(|()| buffer.to_head())
}

fn prepare(model: &mut Vb2Model, buffer: V4l2Buffer) -> Result<V4l2Buffer, Errno> {
    let mut buffer = PlanarBuffer::single(buffer);
    model
        .prepare_buf(FILE, &MINE, &mut buffer)
        .map(|()| buffer.to_head())
}

fn query(model: &Vb2Model) -> V4l2Buffer {
    let mut buffer = PlanarBuffer::blank(CAPTURE, 0);
    model.querybuf(&mut buffer).unwrap();
    buffer.to_head()
}

fn dqbuf(model: &mut Vb2Model) -> Result<V4l2Buffer, Errno> {
    let mut buffer = PlanarBuffer::blank(CAPTURE, 0);
    model.dqbuf(FILE, &mut buffer).map(|()| buffer.to_head())
}

fn complete(model: &mut Vb2Model, error: bool, last: bool) {
    model.complete_oldest(Completion {
        bytesused: [SIZE; 3],
        copied: 0,
        field: 1,
        error,
        last,
    });
}

fn create(count: u32, memory: u32, size: u32) -> V4l2CreateBuffers {
    let mut fmt = [0; 200];
    fmt[20..24].copy_from_slice(&size.to_ne_bytes());
    V4l2CreateBuffers {
        index: 0,
        count,
        memory,
        padding0: 0,
        format: V4l2Format {
            buf_type: CAPTURE,
            padding: 0,
            fmt,
        },
        capabilities: 0,
        flags: 0,
        max_num_buffers: 0,
        reserved: [0; 5],
    }
}

#[test]
fn reqbufs_of_memory_that_is_not_in_io_modes_is_einval_and_nothing_is_copied_out() {
    let mut model = vivid();
    model.params.io_modes = buf_cap::MMAP;
    let mut asked = request(memory::USERPTR, 3);
    assert_eq!(model.reqbufs(FILE, &mut asked), Err(Errno::EINVAL));
    assert_eq!(asked, request(memory::USERPTR, 3));
}

#[test]
fn reqbufs_of_1_and_of_1000_is_clamped_to_2_and_64_with_capabilities_0x11f() {
    for (asked, granted) in [(1, 2), (1000, 64)] {
        let mut request = request(memory::USERPTR, asked);
        vivid().reqbufs(FILE, &mut request).unwrap();
        assert_eq!((request.count, request.capabilities), (granted, 0x11f));
    }
}

#[test]
fn reqbufs_while_streaming_is_ebusy_and_reqbufs_0_of_a_fresh_queue_is_ok() {
    let mut model = vivid_with(memory::USERPTR, 3);
    model.streamon(FILE, CAPTURE).unwrap();
    assert_eq!(
        model.reqbufs(FILE, &mut request(memory::USERPTR, 0)),
        Err(Errno::EBUSY)
    );
    assert_eq!(vivid().reqbufs(FILE, &mut request(memory::USERPTR, 0)), Ok(()));
}

#[test]
fn a_fresh_buffer_has_no_pointer_length_sizeimage_flags_0x2000_and_no_bytes() {
    let fresh = query(&vivid_with(memory::USERPTR, 3));
    assert_eq!(
        (fresh.m, fresh.length, fresh.flags, fresh.bytesused),
        (0, SIZE, 0x2000, 0)
    );
}

#[test]
fn qbuf_with_one_bad_argument_is_the_errno_that_was_measured() {
    let bad = [
        (user_buffer(POINTER, SIZE - 1), Errno::EINVAL),
        (user_buffer(0, SIZE), Errno::EFAULT),
        (user_buffer(0x1000, SIZE), Errno::EFAULT),
        (
            V4l2Buffer {
                buf_type: 9,
                ..good()
            },
            Errno::EINVAL,
        ),
        (
            V4l2Buffer {
                memory: memory::MMAP,
                ..good()
            },
            Errno::EINVAL,
        ),
        (V4l2Buffer { index: 3, ..good() }, Errno::EINVAL),
    ];
    for (buffer, errno) in bad {
        assert_eq!(
            qbuf(&mut vivid_with(memory::USERPTR, 3), buffer),
            Err(errno),
            "{buffer:?}"
        );
    }
}

#[test]
fn flags_are_0x2002_queued_0x2000_dequeued_0x2040_after_an_error_and_a_second_qbuf_is_einval() {
    let mut model = vivid_with(memory::USERPTR, 3);
    let queued = qbuf(&mut model, user_buffer(POINTER, 460_900)).unwrap();
    assert_eq!(
        (queued.flags, queued.m, queued.length),
        (0x2002, POINTER, 460_900)
    );
    assert_eq!(qbuf(&mut model, good()), Err(Errno::EINVAL));
    model.streamon(FILE, CAPTURE).unwrap();
    complete(&mut model, false, false);
    assert_eq!(query(&model).flags, 0x2004);
    let done = dqbuf(&mut model).unwrap();
    assert_eq!(
        (done.flags, done.memory, done.m, done.bytesused),
        (0x2000, 2, POINTER, SIZE)
    );
    qbuf(&mut model, good()).unwrap();
    complete(&mut model, true, false);
    assert_eq!(dqbuf(&mut model).unwrap().flags, 0x2040);
    assert_eq!(query(&model).flags, 0x2000);
}

#[test]
fn a_prepared_buffer_has_0x2400_and_qbuf_then_ignores_what_it_is_passed() {
    let mut model = vivid_with(memory::USERPTR, 3);
    assert_eq!(prepare(&mut model, good()).unwrap().flags, 0x2400);
    assert_eq!(prepare(&mut model, good()), Err(Errno::EINVAL));
    let queued = qbuf(&mut model, user_buffer(0x1000, 5)).unwrap();
    assert_eq!((queued.flags, queued.m, queued.length), (0x2002, POINTER, SIZE));
}

#[test]
fn prepare_buf_with_a_request_is_einval_and_qbuf_with_one_is_ebadr() {
    let buffer = V4l2Buffer {
        flags: buf_flag::REQUEST_FD,
        ..good()
    };
    assert_eq!(
        prepare(&mut vivid_with(memory::USERPTR, 3), buffer),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        qbuf(&mut vivid_with(memory::USERPTR, 3), buffer),
        Err(Errno::EBADR)
    );
}

#[test]
fn the_same_pointer_and_length_is_not_looked_at_again() {
    let mut model = vivid_with(memory::USERPTR, 3);
    qbuf(&mut model, good()).unwrap();
    model.streamoff(FILE, CAPTURE).unwrap();
    let unmapped = UserMemory {
        mm: 1,
        is_accessible: &|_, _| false,
    };
    let good = PlanarBuffer::single(good());
    assert_eq!(model.qbuf(FILE, &unmapped, &mut good.clone()), Ok(()));
    model.streamoff(FILE, CAPTURE).unwrap();
    assert_eq!(
        model.qbuf(
            FILE,
            &unmapped,
            &mut PlanarBuffer::single(user_buffer(POINTER, SIZE + 1))
        ),
        Err(Errno::EFAULT)
    );
}

#[test]
fn streamon_without_buffers_is_einval_and_a_second_streamon_is_ok() {
    assert_eq!(vivid().streamon(FILE, CAPTURE), Err(Errno::EINVAL));
    let mut model = vivid_with(memory::USERPTR, 3);
    assert_eq!(model.streamon(FILE, CAPTURE), Ok(()));
    assert_eq!(model.streamon(FILE, CAPTURE), Ok(()));
}

#[test]
fn streamoff_dequeues_everything_and_keeps_pointer_and_payload() {
    let mut model = vivid_with(memory::USERPTR, 3);
    qbuf(&mut model, good()).unwrap();
    model.streamon(FILE, CAPTURE).unwrap();
    complete(&mut model, false, false);
    model.streamoff(FILE, CAPTURE).unwrap();
    let left = query(&model);
    assert_eq!(
        (left.flags, left.m, left.bytesused, left.field),
        (0x2000, POINTER, SIZE, 1)
    );
    assert_ne!(left.timestamp, [0; 2]);
}

#[test]
fn dqbuf_answers_ebusy_before_einval_before_epipe_before_eagain() {
    let mut model = vivid_with(memory::USERPTR, 3);
    model.set_waiting(true);
    assert_eq!(dqbuf(&mut model), Err(Errno::EBUSY));
    model.set_waiting(false);
    assert_eq!(dqbuf(&mut model), Err(Errno::EINVAL));
    model.streamon(FILE, CAPTURE).unwrap();
    assert_eq!(dqbuf(&mut model), Err(Errno::EAGAIN));
    qbuf(&mut model, good()).unwrap();
    complete(&mut model, false, true);
    assert_eq!(dqbuf(&mut model).unwrap().flags, 0x10_2000);
    assert_eq!(dqbuf(&mut model), Err(Errno::EPIPE));
    model.set_waiting(true);
    assert_eq!(dqbuf(&mut model), Err(Errno::EBUSY));
    model.set_waiting(false);
    model.streamoff(FILE, CAPTURE).unwrap();
    assert_eq!(dqbuf(&mut model), Err(Errno::EINVAL));
}

#[test]
fn create_bufs_0_is_a_probe_other_memory_is_einval_and_a_full_queue_is_enobufs() {
    let mut model = vivid_with(memory::USERPTR, 3);
    let mut probe = create(0, memory::USERPTR, 0);
    model.create_bufs(FileId(2), &mut probe).unwrap();
    assert_eq!(
        (
            probe.index,
            probe.count,
            probe.capabilities,
            probe.max_num_buffers
        ),
        (3, 0, 0x19f, 64)
    );
    assert_eq!(
        model.create_bufs(FILE, &mut create(1, memory::MMAP, SIZE)),
        Err(Errno::EINVAL)
    );
    let mut many = create(100, memory::USERPTR, SIZE);
    model.create_bufs(FILE, &mut many).unwrap();
    assert_eq!((many.index, many.count), (3, 61));
    assert_eq!(
        model.create_bufs(FILE, &mut create(1, memory::USERPTR, SIZE)),
        Err(Errno::ENOBUFS)
    );
}

#[test]
fn a_second_file_gets_ebusy_until_the_first_lets_go() {
    let mut model = vivid_with(memory::USERPTR, 3);
    let other = FileId(2);
    assert_eq!(
        model.reqbufs(other, &mut request(memory::MMAP, 3)),
        Err(Errno::EBUSY)
    );
    assert_eq!(
        model.create_bufs(other, &mut create(1, memory::USERPTR, SIZE)),
        Err(Errno::EBUSY)
    );
    assert_eq!(
        model.qbuf(other, &MINE, &mut PlanarBuffer::single(good())),
        Err(Errno::EBUSY)
    );
    assert_eq!(model.streamon(other, CAPTURE), Err(Errno::EBUSY));
    model.reqbufs(FILE, &mut request(memory::USERPTR, 0)).unwrap();
    assert_eq!(model.reqbufs(other, &mut request(memory::MMAP, 3)), Ok(()));
}

#[test]
fn a_dma_buf_of_length_0_comes_back_page_rounded_short_is_einval_long_is_efault_bad_fd_is_einval() {
    let dma_buf = |m, length| V4l2Buffer {
        memory: memory::DMABUF,
        ..user_buffer(m, length)
    };
    let fd = u64::from(FD.cast_unsigned());
    let mut model = vivid_with(memory::DMABUF, 3);
    assert_eq!(qbuf(&mut model, dma_buf(fd, 1)), Err(Errno::EINVAL));
    assert_eq!(qbuf(&mut model, dma_buf(fd, 462_849)), Err(Errno::EFAULT));
    assert_eq!(qbuf(&mut model, dma_buf(99, 0)), Err(Errno::EINVAL));
    let queued = qbuf(&mut model, dma_buf(fd, 0)).unwrap();
    assert_eq!((queued.m, queued.length, queued.flags), (fd, 462_848, 0x2002));
}

#[test]
fn only_a_mapped_mmap_buffer_has_the_flag_mapped() {
    let mut model = vivid_with(memory::MMAP, 2);
    assert_eq!(query(&model).flags, 0x2000);
    model.map(0);
    assert_eq!(query(&model).flags, 0x2001);
    let mut second = PlanarBuffer::blank(CAPTURE, 1);
    model.querybuf(&mut second).unwrap();
    assert_eq!(second.to_head().m, 1 << 15);
}
