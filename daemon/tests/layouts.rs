//! The table and the structs of `vidcompat-proto` against v4l2r's bindings, which bindgen made from the kernel's headers.

use std::mem::offset_of;

use v4l2r::bindings::*;
use vidcompat_proto::abi::v4l2 as ours;
use vidcompat_proto::ioctl;

/// Size of the argument of an ioctl by its name, by the header; `__u32`, `int` and `v4l2_std_id` by hand.
fn size_in_header(name: &str) -> usize {
    match name {
        "VIDIOC_QUERYCAP" => size_of::<v4l2_capability>(),
        "VIDIOC_ENUM_FMT" => size_of::<v4l2_fmtdesc>(),
        "VIDIOC_G_FMT" => size_of::<v4l2_format>(),
        "VIDIOC_S_FMT" => size_of::<v4l2_format>(),
        "VIDIOC_REQBUFS" => size_of::<v4l2_requestbuffers>(),
        "VIDIOC_QUERYBUF" => size_of::<v4l2_buffer>(),
        "VIDIOC_G_FBUF" => size_of::<v4l2_framebuffer>(),
        "VIDIOC_S_FBUF" => size_of::<v4l2_framebuffer>(),
        "VIDIOC_PREPARE_BUF" => size_of::<v4l2_buffer>(),
        "VIDIOC_QBUF" => size_of::<v4l2_buffer>(),
        "VIDIOC_EXPBUF" => size_of::<v4l2_exportbuffer>(),
        "VIDIOC_DQBUF" => size_of::<v4l2_buffer>(),
        "VIDIOC_G_PARM" => size_of::<v4l2_streamparm>(),
        "VIDIOC_S_PARM" => size_of::<v4l2_streamparm>(),
        "VIDIOC_ENUMSTD" => size_of::<v4l2_standard>(),
        "VIDIOC_ENUMINPUT" => size_of::<v4l2_input>(),
        "VIDIOC_G_CTRL" => size_of::<v4l2_control>(),
        "VIDIOC_S_CTRL" => size_of::<v4l2_control>(),
        "VIDIOC_G_TUNER" => size_of::<v4l2_tuner>(),
        "VIDIOC_S_TUNER" => size_of::<v4l2_tuner>(),
        "VIDIOC_G_AUDIO" => size_of::<v4l2_audio>(),
        "VIDIOC_S_AUDIO" => size_of::<v4l2_audio>(),
        "VIDIOC_QUERYCTRL" => size_of::<v4l2_queryctrl>(),
        "VIDIOC_QUERYMENU" => size_of::<v4l2_querymenu>(),
        "VIDIOC_ENUMOUTPUT" => size_of::<v4l2_output>(),
        "VIDIOC_G_AUDOUT" => size_of::<v4l2_audioout>(),
        "VIDIOC_S_AUDOUT" => size_of::<v4l2_audioout>(),
        "VIDIOC_G_MODULATOR" => size_of::<v4l2_modulator>(),
        "VIDIOC_S_MODULATOR" => size_of::<v4l2_modulator>(),
        "VIDIOC_G_FREQUENCY" => size_of::<v4l2_frequency>(),
        "VIDIOC_S_FREQUENCY" => size_of::<v4l2_frequency>(),
        "VIDIOC_CROPCAP" => size_of::<v4l2_cropcap>(),
        "VIDIOC_G_CROP" => size_of::<v4l2_crop>(),
        "VIDIOC_S_CROP" => size_of::<v4l2_crop>(),
        "VIDIOC_G_JPEGCOMP" => size_of::<v4l2_jpegcompression>(),
        "VIDIOC_S_JPEGCOMP" => size_of::<v4l2_jpegcompression>(),
        "VIDIOC_TRY_FMT" => size_of::<v4l2_format>(),
        "VIDIOC_ENUMAUDIO" => size_of::<v4l2_audio>(),
        "VIDIOC_ENUMAUDOUT" => size_of::<v4l2_audioout>(),
        "VIDIOC_G_SLICED_VBI_CAP" => size_of::<v4l2_sliced_vbi_cap>(),
        "VIDIOC_ENUM_FRAMESIZES" => size_of::<v4l2_frmsizeenum>(),
        "VIDIOC_ENUM_FRAMEINTERVALS" => size_of::<v4l2_frmivalenum>(),
        "VIDIOC_G_ENC_INDEX" => size_of::<v4l2_enc_idx>(),
        "VIDIOC_ENCODER_CMD" => size_of::<v4l2_encoder_cmd>(),
        "VIDIOC_TRY_ENCODER_CMD" => size_of::<v4l2_encoder_cmd>(),
        "VIDIOC_DBG_S_REGISTER" => size_of::<v4l2_dbg_register>(),
        "VIDIOC_DBG_G_REGISTER" => size_of::<v4l2_dbg_register>(),
        "VIDIOC_S_HW_FREQ_SEEK" => size_of::<v4l2_hw_freq_seek>(),
        "VIDIOC_S_DV_TIMINGS" => size_of::<v4l2_dv_timings>(),
        "VIDIOC_G_DV_TIMINGS" => size_of::<v4l2_dv_timings>(),
        "VIDIOC_DQEVENT" => size_of::<v4l2_event>(),
        "VIDIOC_SUBSCRIBE_EVENT" => size_of::<v4l2_event_subscription>(),
        "VIDIOC_UNSUBSCRIBE_EVENT" => size_of::<v4l2_event_subscription>(),
        "VIDIOC_CREATE_BUFS" => size_of::<v4l2_create_buffers>(),
        "VIDIOC_REMOVE_BUFS" => size_of::<v4l2_remove_buffers>(),
        "VIDIOC_G_SELECTION" => size_of::<v4l2_selection>(),
        "VIDIOC_S_SELECTION" => size_of::<v4l2_selection>(),
        "VIDIOC_DECODER_CMD" => size_of::<v4l2_decoder_cmd>(),
        "VIDIOC_TRY_DECODER_CMD" => size_of::<v4l2_decoder_cmd>(),
        "VIDIOC_ENUM_DV_TIMINGS" => size_of::<v4l2_enum_dv_timings>(),
        "VIDIOC_QUERY_DV_TIMINGS" => size_of::<v4l2_dv_timings>(),
        "VIDIOC_DV_TIMINGS_CAP" => size_of::<v4l2_dv_timings_cap>(),
        "VIDIOC_ENUM_FREQ_BANDS" => size_of::<v4l2_frequency_band>(),
        "VIDIOC_DBG_G_CHIP_INFO" => size_of::<v4l2_dbg_chip_info>(),
        "VIDIOC_QUERY_EXT_CTRL" => size_of::<v4l2_query_ext_ctrl>(),
        "VIDIOC_G_EDID" | "VIDIOC_S_EDID" => size_of::<v4l2_edid>(),
        "VIDIOC_G_EXT_CTRLS" | "VIDIOC_S_EXT_CTRLS" | "VIDIOC_TRY_EXT_CTRLS" => {
            size_of::<v4l2_ext_controls>()
        }
        "VIDIOC_LOG_STATUS" => 0,
        "VIDIOC_OVERLAY" | "VIDIOC_STREAMON" | "VIDIOC_STREAMOFF" | "VIDIOC_G_INPUT" | "VIDIOC_S_INPUT"
        | "VIDIOC_G_OUTPUT" | "VIDIOC_S_OUTPUT" | "VIDIOC_G_PRIORITY" | "VIDIOC_S_PRIORITY" => 4,
        "VIDIOC_G_STD" | "VIDIOC_S_STD" | "VIDIOC_QUERYSTD" => 8,
        other => panic!("{other} is in the table and not in this test"),
    }
}

#[test]
fn every_row_has_the_size_of_its_struct() {
    for row in ioctl::V4L2 {
        assert_eq!(row.command.size(), size_in_header(row.name), "{}", row.name);
    }
}

macro_rules! same {
    ($ours:ident = $theirs:ident: $($field:ident = $($path:ident).+),* $(,)?) => {
        assert_eq!(size_of::<ours::$ours>(), size_of::<$theirs>());
        $(assert_eq!(offset_of!(ours::$ours, $field), offset_of!($theirs, $($path).+), stringify!($field));)*
    };
}

#[test]
fn structs_have_the_fields_of_the_header() {
    same!(V4l2Plane = v4l2_plane: bytesused = bytesused, length = length, m = m, data_offset = data_offset,
        reserved = reserved);
    same!(V4l2RemoveBuffers = v4l2_remove_buffers: index = index, count = count, buf_type = type_,
        reserved = reserved);
    same!(V4l2Buffer = v4l2_buffer: index = index, buf_type = type_, bytesused = bytesused, flags = flags,
        field = field, timestamp = timestamp, timecode = timecode, sequence = sequence, memory = memory, m = m,
        length = length, reserved2 = reserved2);
    same!(V4l2RequestBuffers = v4l2_requestbuffers: count = count, buf_type = type_, memory = memory,
        capabilities = capabilities, flags = flags);
    same!(V4l2CreateBuffers = v4l2_create_buffers: index = index, count = count, memory = memory, format = format,
        capabilities = capabilities, flags = flags, max_num_buffers = max_num_buffers);
    same!(V4l2Format = v4l2_format: buf_type = type_, fmt = fmt);
}

#[test]
fn pixel_size_and_window_pointers_are_where_the_table_says() {
    let fmt = offset_of!(v4l2_format, fmt);
    assert_eq!(offset_of!(v4l2_pix_format, sizeimage), 20);
    let pointers = ioctl::row(4).pointers;
    let covered = |offset: usize| {
        pointers
            .iter()
            .any(|at| (at.offset..at.offset + at.len).contains(&offset))
    };
    assert!(covered(fmt + offset_of!(v4l2_window, bitmap)));
    let clips = ioctl::row(4).array.expect("a window's clips");
    assert_eq!(clips.pointer, fmt + offset_of!(v4l2_window, clips));
    assert_eq!(clips.count, fmt + offset_of!(v4l2_window, clipcount));
    assert_eq!(clips.element, size_of::<v4l2_clip>());
    assert!(!covered(fmt + offset_of!(v4l2_window, chromakey)));
    assert!(!covered(fmt + offset_of!(v4l2_window, global_alpha)));
    for pointer in ioctl::row(15).pointers {
        assert_eq!(pointer.offset, offset_of!(v4l2_buffer, m));
    }
    assert_eq!(
        ioctl::row(15).pointers[0].when.offset,
        offset_of!(v4l2_buffer, memory)
    );
    assert_eq!(
        ioctl::row(15).pointers[1].when.offset,
        offset_of!(v4l2_buffer, type_)
    );
}

#[test]
fn arrays_are_where_the_table_says() {
    let edid = ioctl::row(40).array.expect("blocks");
    assert_eq!(edid.pointer, offset_of!(v4l2_edid, edid));
    assert_eq!(edid.count, offset_of!(v4l2_edid, blocks));
    let controls = ioctl::row(71).array.expect("controls");
    assert_eq!(controls.pointer, offset_of!(v4l2_ext_controls, controls));
    assert_eq!(controls.count, offset_of!(v4l2_ext_controls, count));
    assert_eq!(controls.element, size_of::<v4l2_ext_control>());
    assert_eq!(controls.limit, V4L2_CID_MAX_CTRLS);
}

#[test]
fn control_structs_have_the_fields_of_the_header() {
    use vidcompat_proto::abi::controls::{self as ours, CONTROL_ID_MASK, control_flag};
    same!(V4l2ExtControls = v4l2_ext_controls: which = __bindgen_anon_1, count = count, error_idx = error_idx,
        request_fd = request_fd, reserved = reserved, controls = controls);
    same!(V4l2ExtControl = v4l2_ext_control: id = id, size = size, reserved2 = reserved2,
        value = __bindgen_anon_1);
    same!(V4l2QueryExtCtrl = v4l2_query_ext_ctrl: id = id, control_type = type_, name = name, minimum = minimum,
        maximum = maximum, step = step, default_value = default_value, flags = flags, elem_size = elem_size,
        elems = elems, nr_of_dims = nr_of_dims, dims = dims, reserved = reserved);
    assert_eq!(control_flag::HAS_PAYLOAD, V4L2_CTRL_FLAG_HAS_PAYLOAD);
    assert_eq!(control_flag::DYNAMIC_ARRAY, V4L2_CTRL_FLAG_DYNAMIC_ARRAY);
    assert_eq!(CONTROL_ID_MASK, V4L2_CTRL_ID_MASK);
}

#[test]
fn constants_are_those_of_the_header() {
    use ours::{buf_cap, buf_flag, buf_type, memory};
    assert_eq!(buf_type::VIDEO_CAPTURE, v4l2_buf_type_V4L2_BUF_TYPE_VIDEO_CAPTURE);
    assert_eq!(buf_type::VIDEO_OVERLAY, v4l2_buf_type_V4L2_BUF_TYPE_VIDEO_OVERLAY);
    assert_eq!(buf_type::VBI_CAPTURE, v4l2_buf_type_V4L2_BUF_TYPE_VBI_CAPTURE);
    assert_eq!(
        buf_type::SLICED_VBI_CAPTURE,
        v4l2_buf_type_V4L2_BUF_TYPE_SLICED_VBI_CAPTURE
    );
    assert_eq!(
        buf_type::VIDEO_OUTPUT_OVERLAY,
        v4l2_buf_type_V4L2_BUF_TYPE_VIDEO_OUTPUT_OVERLAY
    );
    assert_eq!(
        buf_type::VIDEO_CAPTURE_MPLANE,
        v4l2_buf_type_V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE
    );
    assert_eq!(
        buf_type::VIDEO_OUTPUT_MPLANE,
        v4l2_buf_type_V4L2_BUF_TYPE_VIDEO_OUTPUT_MPLANE
    );
    assert_eq!(buf_type::SDR_CAPTURE, v4l2_buf_type_V4L2_BUF_TYPE_SDR_CAPTURE);
    assert_eq!(buf_type::META_CAPTURE, v4l2_buf_type_V4L2_BUF_TYPE_META_CAPTURE);
    assert_eq!(memory::MMAP, v4l2_memory_V4L2_MEMORY_MMAP);
    assert_eq!(memory::USERPTR, v4l2_memory_V4L2_MEMORY_USERPTR);
    assert_eq!(memory::DMABUF, v4l2_memory_V4L2_MEMORY_DMABUF);
    assert_eq!(buf_cap::USERPTR, V4L2_BUF_CAP_SUPPORTS_USERPTR);
    assert_eq!(buf_cap::REMOVE_BUFS, V4L2_BUF_CAP_SUPPORTS_REMOVE_BUFS);
    assert_eq!(buf_cap::MMAP_CACHE_HINTS, V4L2_BUF_CAP_SUPPORTS_MMAP_CACHE_HINTS);
    assert_eq!(buf_flag::TIMESTAMP_MASK, V4L2_BUF_FLAG_TIMESTAMP_MASK);
    assert_eq!(buf_flag::TSTAMP_SRC_MASK, V4L2_BUF_FLAG_TSTAMP_SRC_MASK);
    assert_eq!(buf_flag::LAST, V4L2_BUF_FLAG_LAST);
    assert_eq!(buf_flag::REQUEST_FD, V4L2_BUF_FLAG_REQUEST_FD);
    assert_eq!(buf_flag::PREPARED, V4L2_BUF_FLAG_PREPARED);
    assert_eq!(buf_flag::M2M_HOLD_CAPTURE_BUF, V4L2_BUF_FLAG_M2M_HOLD_CAPTURE_BUF);
}
