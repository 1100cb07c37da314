//! V4L2 structs with the 64-bit layout (`linux/videodev2.h`), and the constants that the queue core decides by.
//!
//! Only what the core reads or changes is here: a struct that merely passes through stays bytes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `enum v4l2_buf_type`, as the number that travels.
pub mod buf_type {
    /// `V4L2_BUF_TYPE_VIDEO_CAPTURE`
    pub const VIDEO_CAPTURE: u32 = 1;
    /// `V4L2_BUF_TYPE_VIDEO_OUTPUT`
    pub const VIDEO_OUTPUT: u32 = 2;
    /// `V4L2_BUF_TYPE_VIDEO_OVERLAY`
    pub const VIDEO_OVERLAY: u32 = 3;
    /// `V4L2_BUF_TYPE_VBI_CAPTURE`
    pub const VBI_CAPTURE: u32 = 4;
    /// `V4L2_BUF_TYPE_VBI_OUTPUT`
    pub const VBI_OUTPUT: u32 = 5;
    /// `V4L2_BUF_TYPE_SLICED_VBI_CAPTURE`
    pub const SLICED_VBI_CAPTURE: u32 = 6;
    /// `V4L2_BUF_TYPE_SLICED_VBI_OUTPUT`
    pub const SLICED_VBI_OUTPUT: u32 = 7;
    /// `V4L2_BUF_TYPE_VIDEO_OUTPUT_OVERLAY`
    pub const VIDEO_OUTPUT_OVERLAY: u32 = 8;
    /// `V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE`
    pub const VIDEO_CAPTURE_MPLANE: u32 = 9;
    /// `V4L2_BUF_TYPE_VIDEO_OUTPUT_MPLANE`
    pub const VIDEO_OUTPUT_MPLANE: u32 = 10;
    /// `V4L2_BUF_TYPE_SDR_CAPTURE`
    pub const SDR_CAPTURE: u32 = 11;
    /// `V4L2_BUF_TYPE_SDR_OUTPUT`
    pub const SDR_OUTPUT: u32 = 12;
    /// `V4L2_BUF_TYPE_META_CAPTURE`
    pub const META_CAPTURE: u32 = 13;
    /// `V4L2_BUF_TYPE_META_OUTPUT`
    pub const META_OUTPUT: u32 = 14;

    /// `V4L2_TYPE_IS_MULTIPLANAR`
    #[must_use]
    pub const fn is_multi_planar(buf_type: u32) -> bool {
        matches!(buf_type, VIDEO_CAPTURE_MPLANE | VIDEO_OUTPUT_MPLANE)
    }

    /// `V4L2_TYPE_IS_OUTPUT`: does the device read these buffers?
    #[must_use]
    pub const fn is_output(buf_type: u32) -> bool {
        matches!(
            buf_type,
            VIDEO_OUTPUT
                | VIDEO_OUTPUT_MPLANE
                | VIDEO_OVERLAY
                | VIDEO_OUTPUT_OVERLAY
                | VBI_OUTPUT
                | SLICED_VBI_OUTPUT
                | SDR_OUTPUT
                | META_OUTPUT
        )
    }
}

/// `enum v4l2_memory`, as the number that travels.
pub mod memory {
    /// `V4L2_MEMORY_MMAP`
    pub const MMAP: u32 = 1;
    /// `V4L2_MEMORY_USERPTR`
    pub const USERPTR: u32 = 2;
    /// `V4L2_MEMORY_DMABUF`
    pub const DMABUF: u32 = 4;
}

/// `V4L2_BUF_FLAG_*`
pub mod buf_flag {
    /// The buffer is mapped (MMAP only).
    pub const MAPPED: u32 = 0x0000_0001;
    /// The buffer is in the driver's hands.
    pub const QUEUED: u32 = 0x0000_0002;
    /// The buffer waits to be dequeued.
    pub const DONE: u32 = 0x0000_0004;
    /// Key frame.
    pub const KEYFRAME: u32 = 0x0000_0008;
    /// Predicted frame.
    pub const PFRAME: u32 = 0x0000_0010;
    /// Bidirectionally predicted frame.
    pub const BFRAME: u32 = 0x0000_0020;
    /// The data may be garbage.
    pub const ERROR: u32 = 0x0000_0040;
    /// The buffer belongs to a request that is not queued yet.
    pub const IN_REQUEST: u32 = 0x0000_0080;
    /// `timecode` is valid.
    pub const TIMECODE: u32 = 0x0000_0100;
    /// m2m: keep the capture buffer.
    pub const M2M_HOLD_CAPTURE_BUF: u32 = 0x0000_0200;
    /// The buffer was prepared.
    pub const PREPARED: u32 = 0x0000_0400;
    /// Cache hint.
    pub const NO_CACHE_INVALIDATE: u32 = 0x0000_0800;
    /// Cache hint.
    pub const NO_CACHE_CLEAN: u32 = 0x0000_1000;
    /// Which clock stamped the buffer.
    pub const TIMESTAMP_MASK: u32 = 0x0000_e000;
    /// The stamp is a copy of the OUTPUT buffer's.
    pub const TIMESTAMP_COPY: u32 = 0x0000_4000;
    /// When in the frame the stamp was taken.
    pub const TSTAMP_SRC_MASK: u32 = 0x0007_0000;
    /// The last buffer of a stream.
    pub const LAST: u32 = 0x0010_0000;
    /// `request_fd` is valid.
    pub const REQUEST_FD: u32 = 0x0080_0000;

    /// `V4L2_BUFFER_MASK_FLAGS`: what vb2 sets from its own state (videobuf2-v4l2.c:47).
    pub const STATE_MASK: u32 =
        MAPPED | QUEUED | DONE | ERROR | PREPARED | IN_REQUEST | REQUEST_FD | TIMESTAMP_MASK;
    /// `V4L2_BUFFER_OUT_FLAGS`: what only an OUTPUT buffer may bring (videobuf2-v4l2.c:53).
    pub const OUT_MASK: u32 = PFRAME | BFRAME | KEYFRAME | TIMECODE | M2M_HOLD_CAPTURE_BUF;
}

/// `V4L2_BUF_CAP_*`
pub mod buf_cap {
    /// `V4L2_BUF_CAP_SUPPORTS_MMAP`
    pub const MMAP: u32 = 0x001;
    /// `V4L2_BUF_CAP_SUPPORTS_USERPTR`
    pub const USERPTR: u32 = 0x002;
    /// `V4L2_BUF_CAP_SUPPORTS_DMABUF`
    pub const DMABUF: u32 = 0x004;
    /// `V4L2_BUF_CAP_SUPPORTS_REQUESTS`
    pub const REQUESTS: u32 = 0x008;
    /// `V4L2_BUF_CAP_SUPPORTS_M2M_HOLD_CAPTURE_BUF`
    pub const M2M_HOLD_CAPTURE_BUF: u32 = 0x020;
    /// `V4L2_BUF_CAP_SUPPORTS_MMAP_CACHE_HINTS`
    pub const MMAP_CACHE_HINTS: u32 = 0x040;
    /// `V4L2_BUF_CAP_SUPPORTS_REMOVE_BUFS`
    pub const REMOVE_BUFS: u32 = 0x100;
}

/// `struct v4l2_exportbuffer`, 64 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct V4l2ExportBuffer {
    /// See [`buf_type`].
    pub buf_type: u32,
    /// Number of the buffer in its queue.
    pub index: u32,
    /// Number of the plane.
    pub plane: u32,
    /// `O_CLOEXEC`, and an access mode.
    pub flags: u32,
    /// What comes back.
    pub fd: i32,
    /// Zero.
    pub reserved: [u32; 11],
}

/// `struct v4l2_buffer`, 88 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct V4l2Buffer {
    /// Number of the buffer in its queue.
    pub index: u32,
    /// See [`buf_type`].
    pub buf_type: u32,
    /// Bytes that hold data.
    pub bytesused: u32,
    /// See [`buf_flag`].
    pub flags: u32,
    /// `enum v4l2_field`
    pub field: u32,
    /// Padding.
    pub padding0: u32,
    /// `struct timeval`: seconds, microseconds.
    pub timestamp: [i64; 2],
    /// `struct v4l2_timecode`
    pub timecode: [u8; 16],
    /// Frame counter of the driver.
    pub sequence: u32,
    /// See [`memory`].
    pub memory: u32,
    /// `m.offset`, `m.userptr`, `m.planes` or `m.fd`: for an fd or an offset only the low 32 bits count.
    pub m: u64,
    /// Size of the buffer in bytes, or number of planes.
    pub length: u32,
    /// Reserved.
    pub reserved2: u32,
    /// Request, or 0.
    pub request_fd: u32,
    /// Padding.
    pub padding1: u32,
}

/// `struct v4l2_plane`, 64 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct V4l2Plane {
    /// Bytes that hold data.
    pub bytesused: u32,
    /// Size of the plane in bytes.
    pub length: u32,
    /// `m.mem_offset`, `m.userptr` or `m.fd`.
    pub m: u64,
    /// Where in the plane the data begins.
    pub data_offset: u32,
    /// Reserved.
    pub reserved: [u32; 11],
}

/// `VIDEO_MAX_PLANES`
pub const MAX_PLANES: u32 = 8;

/// A buffer and its planes. A single-planar buffer has one, which is a view of fields of the buffer itself: vb2 sees
/// them so, too (`vb2_fill_vb2_v4l2_buffer`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanarBuffer {
    /// The buffer; of a multi-planar one `m` is the client's pointer to the planes, or 0.
    pub head: V4l2Buffer,
    /// The planes: of a multi-planar buffer as many as its `length` said.
    pub planes: Vec<V4l2Plane>,
}

impl PlanarBuffer {
    /// A single-planar buffer.
    #[must_use]
    pub fn single(head: V4l2Buffer) -> Self {
        Self {
            head,
            planes: vec![V4l2Plane {
                bytesused: head.bytesused,
                length: head.length,
                m: head.m,
                ..V4l2Plane::default()
            }],
        }
    }

    /// A buffer of `buf_type` with room for all planes that it can have and nothing else said.
    #[must_use]
    pub fn blank(buf_type: u32, index: u32) -> Self {
        let head = V4l2Buffer {
            index,
            buf_type,
            ..V4l2Buffer::default()
        };
        if buf_type::is_multi_planar(buf_type) {
            Self {
                head: V4l2Buffer {
                    length: MAX_PLANES,
                    ..head
                },
                planes: vec![V4l2Plane::default(); MAX_PLANES as usize],
            }
        } else {
            Self::single(head)
        }
    }

    /// Is it multi-planar, by its type?
    #[must_use]
    pub fn is_multi_planar(&self) -> bool {
        buf_type::is_multi_planar(self.head.buf_type)
    }

    /// The buffer as it travels: where it is single-planar, with the fields of its plane.
    #[must_use]
    pub fn to_head(&self) -> V4l2Buffer {
        match self.planes.first() {
            Some(plane) if !self.is_multi_planar() => V4l2Buffer {
                bytesused: plane.bytesused,
                length: plane.length,
                m: plane.m,
                ..self.head
            },
            _ => self.head,
        }
    }

    /// The planes that a device has described: as many as it has.
    #[must_use]
    pub fn described(&self) -> &[V4l2Plane] {
        let count = if self.is_multi_planar() {
            self.head.length as usize
        } else {
            1
        };
        &self.planes[..count.min(self.planes.len())]
    }
}

/// `struct v4l2_remove_buffers`, 64 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct V4l2RemoveBuffers {
    /// First buffer to remove.
    pub index: u32,
    /// How many.
    pub count: u32,
    /// See [`buf_type`].
    pub buf_type: u32,
    /// Reserved.
    pub reserved: [u32; 13],
}

/// `struct v4l2_requestbuffers`, 20 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct V4l2RequestBuffers {
    /// Buffers asked for, buffers granted.
    pub count: u32,
    /// See [`buf_type`].
    pub buf_type: u32,
    /// See [`memory`].
    pub memory: u32,
    /// See [`buf_cap`].
    pub capabilities: u32,
    /// `V4L2_MEMORY_FLAG_*`
    pub flags: u8,
    /// Reserved.
    pub reserved: [u8; 3],
}

/// `struct v4l2_create_buffers`, 256 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct V4l2CreateBuffers {
    /// Index of the first new buffer.
    pub index: u32,
    /// Buffers asked for, buffers granted.
    pub count: u32,
    /// See [`memory`].
    pub memory: u32,
    /// Padding.
    pub padding0: u32,
    /// The format that the buffers must hold.
    pub format: V4l2Format,
    /// See [`buf_cap`].
    pub capabilities: u32,
    /// `V4L2_MEMORY_FLAG_*`
    pub flags: u32,
    /// Upper bound of buffers in the queue, where the kernel tells it.
    pub max_num_buffers: u32,
    /// Reserved.
    pub reserved: [u32; 5],
}

/// `struct v4l2_format`, 208 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct V4l2Format {
    /// See [`buf_type`].
    pub buf_type: u32,
    /// Padding.
    pub padding: u32,
    /// The union, by type.
    pub fmt: [u8; 200],
}

impl V4l2Format {
    /// `fmt.pix.field` or `fmt.pix_mp.field` of a video format, `enum v4l2_field`: both are at offset 12.
    #[must_use]
    pub fn pix_field(&self) -> u32 {
        let mut raw = [0; 4];
        raw.copy_from_slice(&self.fmt[12..16]);
        u32::from_ne_bytes(raw)
    }

    /// `fmt.pix.sizeimage` of a single-planar video format, in bytes (`struct v4l2_pix_format`, offset 20).
    #[must_use]
    pub fn pix_sizeimage(&self) -> u32 {
        let mut raw = [0; 4];
        raw.copy_from_slice(&self.fmt[20..24]);
        u32::from_ne_bytes(raw)
    }
}

const _: () = assert!(size_of::<V4l2Buffer>() == 88);
const _: () = assert!(size_of::<V4l2Plane>() == 64);
const _: () = assert!(size_of::<V4l2RequestBuffers>() == 20);
const _: () = assert!(size_of::<V4l2RemoveBuffers>() == 64);
const _: () = assert!(size_of::<V4l2Format>() == 208);
const _: () = assert!(size_of::<V4l2CreateBuffers>() == 256);
