//! The V4L2 rows, in the order of `linux/videodev2.h`; sizes are those of the 64-bit structs.

use super::Policy::{Controls, Dqevent, Expbuf, Pass, Privileged, Queue, Refuse, Seek};
use super::{Array, Pointer, Policy, QueueOp, Row, When};
use crate::Errno;
use crate::abi::v4l2::buf_type::{
    VIDEO_CAPTURE_MPLANE, VIDEO_OUTPUT_MPLANE, VIDEO_OUTPUT_OVERLAY, VIDEO_OVERLAY,
};
use crate::abi::v4l2::memory;
use crate::ioc::Direction::{None, Read, ReadWrite, Write};

const OVERLAY: When = When {
    offset: 0,
    is_one_of: &[VIDEO_OVERLAY, VIDEO_OUTPUT_OVERLAY],
};

/// `struct v4l2_format`, `fmt.win`: `bitmap`. 6.12 zeroes it itself (v4l2-ioctl.c:1767); drivers of 6.1 follow it, and
/// get none.
const WINDOW_BITMAP: &[Pointer] = &[Pointer {
    when: OVERLAY,
    offset: 48,
    len: 8,
}];

/// The same: `clips`, `clipcount` (6.1, v4l2-ioctl.c:3142). 6.12 zeroes them itself.
const WINDOW_CLIPS: Array = Array {
    when: Some(OVERLAY),
    pointer: 32,
    count: 40,
    element: 24,
    limit: 2048,
    beyond: Errno::EINVAL,
};

const MULTI_PLANAR: When = When {
    offset: 4,
    is_one_of: &[VIDEO_CAPTURE_MPLANE, VIDEO_OUTPUT_MPLANE],
};

/// `struct v4l2_buffer`: `m.userptr`; `m.planes` with its `length`.
const BUFFER_POINTERS: &[Pointer] = &[
    Pointer {
        when: When {
            offset: 60,
            is_one_of: &[memory::USERPTR],
        },
        offset: 64,
        len: 8,
    },
    Pointer {
        when: MULTI_PLANAR,
        offset: 64,
        len: 12,
    },
];

/// `struct v4l2_edid`: `edid`, `blocks`.
const EDID_BLOCKS: Array = Array {
    when: Option::None,
    pointer: 32,
    count: 8,
    element: 128,
    limit: 256,
    beyond: Errno::EINVAL,
};

/// `struct v4l2_ext_controls`: `controls`, `count` (`V4L2_CID_MAX_CTRLS`).
const EXT_CONTROLS: Array = Array {
    when: Option::None,
    pointer: 24,
    count: 4,
    element: 20,
    limit: 1024,
    beyond: Errno::EINVAL,
};

/// `S_FBUF` says where in physical memory a driver is to draw: never on behalf of a client, whose right to say so the
/// driver would look for in the daemon.
const NEVER: Policy = Refuse(Errno::EPERM);

/// All V4L2 ioctls that a client may call, ascending by number.
pub const ROWS: &[Row] = &[
    Row::new("VIDIOC_QUERYCAP", Read, 0, 104, Pass),
    Row::new("VIDIOC_ENUM_FMT", ReadWrite, 2, 64, Pass),
    Row::new("VIDIOC_G_FMT", ReadWrite, 4, 208, Policy::Window)
        .array(WINDOW_CLIPS)
        .pointers(WINDOW_BITMAP),
    Row::new("VIDIOC_S_FMT", ReadWrite, 5, 208, Policy::Window)
        .array(WINDOW_CLIPS)
        .pointers(WINDOW_BITMAP),
    Row::new("VIDIOC_REQBUFS", ReadWrite, 8, 20, Queue(QueueOp::Reqbufs)),
    Row::new("VIDIOC_QUERYBUF", ReadWrite, 9, 88, Queue(QueueOp::Querybuf)).pointers(BUFFER_POINTERS),
    Row::new("VIDIOC_G_FBUF", Read, 10, 48, Pass),
    Row::new("VIDIOC_S_FBUF", Write, 11, 48, NEVER).probe(10),
    Row::new("VIDIOC_OVERLAY", Write, 14, 4, Pass),
    Row::new("VIDIOC_QBUF", ReadWrite, 15, 88, Queue(QueueOp::Qbuf)).pointers(BUFFER_POINTERS),
    Row::new("VIDIOC_EXPBUF", ReadWrite, 16, 64, Expbuf),
    Row::new("VIDIOC_DQBUF", ReadWrite, 17, 88, Queue(QueueOp::Dqbuf)).pointers(BUFFER_POINTERS),
    Row::new("VIDIOC_STREAMON", Write, 18, 4, Queue(QueueOp::Streamon)),
    Row::new("VIDIOC_STREAMOFF", Write, 19, 4, Queue(QueueOp::Streamoff)),
    Row::new("VIDIOC_G_PARM", ReadWrite, 21, 204, Pass),
    Row::new("VIDIOC_S_PARM", ReadWrite, 22, 204, Pass),
    Row::new("VIDIOC_G_STD", Read, 23, 8, Pass),
    Row::new("VIDIOC_S_STD", Write, 24, 8, Pass),
    Row::new("VIDIOC_ENUMSTD", ReadWrite, 25, 72, Pass),
    Row::new("VIDIOC_ENUMINPUT", ReadWrite, 26, 80, Pass),
    Row::new("VIDIOC_G_CTRL", ReadWrite, 27, 8, Pass),
    Row::new("VIDIOC_S_CTRL", ReadWrite, 28, 8, Pass),
    Row::new("VIDIOC_G_TUNER", ReadWrite, 29, 84, Pass),
    Row::new("VIDIOC_S_TUNER", Write, 30, 84, Pass),
    Row::new("VIDIOC_G_AUDIO", Read, 33, 52, Pass),
    Row::new("VIDIOC_S_AUDIO", Write, 34, 52, Pass),
    Row::new("VIDIOC_QUERYCTRL", ReadWrite, 36, 68, Pass),
    Row::new("VIDIOC_QUERYMENU", ReadWrite, 37, 44, Pass),
    Row::new("VIDIOC_G_INPUT", Read, 38, 4, Pass),
    Row::new("VIDIOC_S_INPUT", ReadWrite, 39, 4, Pass),
    Row::new("VIDIOC_G_EDID", ReadWrite, 40, 40, Policy::Array)
        .array(EDID_BLOCKS)
        .always_copy(),
    Row::new("VIDIOC_S_EDID", ReadWrite, 41, 40, Policy::Array)
        .array(EDID_BLOCKS)
        .always_copy(),
    Row::new("VIDIOC_G_OUTPUT", Read, 46, 4, Pass),
    Row::new("VIDIOC_S_OUTPUT", ReadWrite, 47, 4, Pass),
    Row::new("VIDIOC_ENUMOUTPUT", ReadWrite, 48, 72, Pass),
    Row::new("VIDIOC_G_AUDOUT", Read, 49, 52, Pass),
    Row::new("VIDIOC_S_AUDOUT", Write, 50, 52, Pass),
    Row::new("VIDIOC_G_MODULATOR", ReadWrite, 54, 68, Pass),
    Row::new("VIDIOC_S_MODULATOR", Write, 55, 68, Pass),
    Row::new("VIDIOC_G_FREQUENCY", ReadWrite, 56, 44, Pass),
    Row::new("VIDIOC_S_FREQUENCY", Write, 57, 44, Pass),
    Row::new("VIDIOC_CROPCAP", ReadWrite, 58, 44, Pass),
    Row::new("VIDIOC_G_CROP", ReadWrite, 59, 20, Pass),
    Row::new("VIDIOC_S_CROP", Write, 60, 20, Pass),
    Row::new("VIDIOC_G_JPEGCOMP", Read, 61, 140, Pass),
    Row::new("VIDIOC_S_JPEGCOMP", Write, 62, 140, Pass),
    Row::new("VIDIOC_QUERYSTD", Read, 63, 8, Pass),
    Row::new("VIDIOC_TRY_FMT", ReadWrite, 64, 208, Policy::Window)
        .array(WINDOW_CLIPS)
        .pointers(WINDOW_BITMAP),
    Row::new("VIDIOC_ENUMAUDIO", ReadWrite, 65, 52, Pass),
    Row::new("VIDIOC_ENUMAUDOUT", ReadWrite, 66, 52, Pass),
    Row::new("VIDIOC_G_PRIORITY", Read, 67, 4, Pass),
    Row::new("VIDIOC_S_PRIORITY", Write, 68, 4, Pass),
    Row::new("VIDIOC_G_SLICED_VBI_CAP", ReadWrite, 69, 116, Pass),
    Row::new("VIDIOC_LOG_STATUS", None, 70, 0, Pass),
    Row::new("VIDIOC_G_EXT_CTRLS", ReadWrite, 71, 32, Controls)
        .array(EXT_CONTROLS)
        .always_copy(),
    Row::new("VIDIOC_S_EXT_CTRLS", ReadWrite, 72, 32, Controls)
        .array(EXT_CONTROLS)
        .always_copy(),
    Row::new("VIDIOC_TRY_EXT_CTRLS", ReadWrite, 73, 32, Controls)
        .array(EXT_CONTROLS)
        .always_copy(),
    Row::new("VIDIOC_ENUM_FRAMESIZES", ReadWrite, 74, 44, Pass),
    Row::new("VIDIOC_ENUM_FRAMEINTERVALS", ReadWrite, 75, 52, Pass),
    Row::new("VIDIOC_G_ENC_INDEX", Read, 76, 2072, Pass),
    Row::new("VIDIOC_ENCODER_CMD", ReadWrite, 77, 40, Pass),
    Row::new("VIDIOC_TRY_ENCODER_CMD", ReadWrite, 78, 40, Pass),
    Row::new("VIDIOC_DBG_S_REGISTER", Write, 79, 56, Privileged).probe(80),
    Row::new("VIDIOC_DBG_G_REGISTER", ReadWrite, 80, 56, Privileged).probe(80),
    Row::new("VIDIOC_S_HW_FREQ_SEEK", Write, 82, 48, Seek),
    Row::new("VIDIOC_S_DV_TIMINGS", ReadWrite, 87, 132, Pass),
    Row::new("VIDIOC_G_DV_TIMINGS", ReadWrite, 88, 132, Pass),
    Row::new("VIDIOC_DQEVENT", Read, 89, 136, Dqevent),
    Row::new("VIDIOC_SUBSCRIBE_EVENT", Write, 90, 32, Pass),
    Row::new("VIDIOC_UNSUBSCRIBE_EVENT", Write, 91, 32, Pass),
    Row::new(
        "VIDIOC_CREATE_BUFS",
        ReadWrite,
        92,
        256,
        Queue(QueueOp::CreateBufs),
    ),
    Row::new(
        "VIDIOC_PREPARE_BUF",
        ReadWrite,
        93,
        88,
        Queue(QueueOp::PrepareBuf),
    )
    .pointers(BUFFER_POINTERS),
    Row::new("VIDIOC_G_SELECTION", ReadWrite, 94, 64, Pass),
    Row::new("VIDIOC_S_SELECTION", ReadWrite, 95, 64, Pass),
    Row::new("VIDIOC_DECODER_CMD", ReadWrite, 96, 72, Pass),
    Row::new("VIDIOC_TRY_DECODER_CMD", ReadWrite, 97, 72, Pass),
    Row::new("VIDIOC_ENUM_DV_TIMINGS", ReadWrite, 98, 148, Pass),
    Row::new("VIDIOC_QUERY_DV_TIMINGS", Read, 99, 132, Pass).always_copy(),
    Row::new("VIDIOC_DV_TIMINGS_CAP", ReadWrite, 100, 144, Pass),
    Row::new("VIDIOC_ENUM_FREQ_BANDS", ReadWrite, 101, 64, Pass),
    Row::new("VIDIOC_DBG_G_CHIP_INFO", ReadWrite, 102, 200, Pass),
    Row::new("VIDIOC_QUERY_EXT_CTRL", ReadWrite, 103, 232, Pass),
    Row::new(
        "VIDIOC_REMOVE_BUFS",
        ReadWrite,
        104,
        64,
        Queue(QueueOp::RemoveBufs),
    ),
];
