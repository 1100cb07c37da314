//! What a node's formats and capabilities say of read() and write(): which queues it has, how long a frame is.

use super::v4l2::{V4l2Format, buf_type};

/// `V4L2_CAP_*` of what can be captured, and the queues that come with it (`linux/videodev2.h`).
const CAPTURES: &[(u32, u32)] = &[
    (0x0000_0001, buf_type::VIDEO_CAPTURE),
    (0x0000_8000, buf_type::VIDEO_CAPTURE),
    (0x0000_1000, buf_type::VIDEO_CAPTURE_MPLANE),
    (0x0000_4000, buf_type::VIDEO_CAPTURE_MPLANE),
    (0x0000_0010, buf_type::VBI_CAPTURE),
    (0x0000_0040, buf_type::SLICED_VBI_CAPTURE),
    (0x0010_0000, buf_type::SDR_CAPTURE),
    (0x0080_0000, buf_type::META_CAPTURE),
];

/// The same of what can be put out.
const OUTPUTS: &[(u32, u32)] = &[
    (0x0000_0002, buf_type::VIDEO_OUTPUT),
    (0x0000_8000, buf_type::VIDEO_OUTPUT),
    (0x0000_2000, buf_type::VIDEO_OUTPUT_MPLANE),
    (0x0000_4000, buf_type::VIDEO_OUTPUT_MPLANE),
    (0x0000_0020, buf_type::VBI_OUTPUT),
    (0x0000_0080, buf_type::SLICED_VBI_OUTPUT),
    (0x0040_0000, buf_type::SDR_OUTPUT),
    (0x0800_0000, buf_type::META_OUTPUT),
];

fn types(table: &'static [(u32, u32)], device_caps: u32) -> impl Iterator<Item = u32> {
    table
        .iter()
        .filter(move |(capability, _)| device_caps & capability != 0)
        .map(|(_, buf_type)| *buf_type)
}

/// The capture queues that a node with these `device_caps` may have.
pub fn capture_types(device_caps: u32) -> impl Iterator<Item = u32> {
    types(CAPTURES, device_caps)
}

/// The output queues that a node with these `device_caps` may have.
pub fn output_types(device_caps: u32) -> impl Iterator<Item = u32> {
    types(OUTPUTS, device_caps)
}

impl V4l2Format {
    /// Bytes of a whole frame in this format, of all planes together; `None` for a type that has no frames. Raw VBI has
    /// one byte for each sample (`V4L2_PIX_FMT_GREY`, the only sample format that there is).
    #[must_use]
    pub fn frame_size(&self) -> Option<u64> {
        match self.buf_type {
            buf_type::VIDEO_CAPTURE | buf_type::VIDEO_OUTPUT => Some(self.pix_sizeimage().into()),
            buf_type::VIDEO_CAPTURE_MPLANE | buf_type::VIDEO_OUTPUT_MPLANE => {
                // plane_fmt[8] of 20 bytes, each with sizeimage first, then num_planes.
                let planes = usize::from(self.fmt[180]).min(8);
                Some(
                    (0..planes)
                        .map(|plane| u64::from(self.word(20 + 20 * plane)))
                        .sum(),
                )
            }
            buf_type::VBI_CAPTURE | buf_type::VBI_OUTPUT => {
                // samples_per_line, and count[2], the lines of both fields.
                let lines = u64::from(self.word(24)).saturating_add(self.word(28).into());
                Some(u64::from(self.word(8)).saturating_mul(lines))
            }
            // io_size
            buf_type::SLICED_VBI_CAPTURE | buf_type::SLICED_VBI_OUTPUT => Some(self.word(100).into()),
            // buffersize
            buf_type::SDR_CAPTURE | buf_type::SDR_OUTPUT | buf_type::META_CAPTURE | buf_type::META_OUTPUT => {
                Some(self.word(4).into())
            }
            _ => None,
        }
    }

    fn word(&self, at: usize) -> u32 {
        let mut raw = [0; 4];
        raw.copy_from_slice(&self.fmt[at..at + 4]);
        u32::from_ne_bytes(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::{capture_types, output_types};
    use crate::abi::v4l2::{V4l2Format, buf_type};

    fn format(buf_type: u32, words: &[(usize, u32)]) -> V4l2Format {
        let mut fmt = [0; 200];
        for (at, word) in words {
            fmt[*at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        V4l2Format {
            buf_type,
            padding: 0,
            fmt,
        }
    }

    #[test]
    fn each_type_has_its_own_way_to_tell_the_size_of_a_frame() {
        let size = |buf_type, words: &[(usize, u32)]| format(buf_type, words).frame_size();
        assert_eq!(size(buf_type::VIDEO_OUTPUT, &[(20, 829_440)]), Some(829_440));
        assert_eq!(
            size(buf_type::VBI_CAPTURE, &[(8, 1440), (24, 18), (28, 18)]),
            Some(51_840)
        );
        assert_eq!(size(buf_type::SLICED_VBI_OUTPUT, &[(100, 2304)]), Some(2304));
        assert_eq!(size(buf_type::META_CAPTURE, &[(4, 22)]), Some(22));
        assert_eq!(size(buf_type::VIDEO_OVERLAY, &[(20, 1), (4, 1)]), None);
        let planes = [(20, 1000), (40, 500), (60, 7777), (180, 2)];
        assert_eq!(size(buf_type::VIDEO_CAPTURE_MPLANE, &planes), Some(1500));
    }

    #[test]
    fn numbers_that_no_driver_gives_do_no_harm() {
        let all = |buf_type| V4l2Format {
            buf_type,
            padding: 0,
            fmt: [0xff; 200],
        };
        for buf_type in 0..20 {
            // Overflow would panic here.
            let _ = all(buf_type).frame_size();
        }
        let planes = all(buf_type::VIDEO_OUTPUT_MPLANE).frame_size();
        assert_eq!(planes, Some(8 * u64::from(u32::MAX)));
    }

    #[test]
    fn an_m2m_node_has_both_directions_and_a_radio_neither() {
        let both = |caps| {
            (
                capture_types(caps).collect::<Vec<_>>(),
                output_types(caps).collect::<Vec<_>>(),
            )
        };
        assert_eq!(both(0x0420_8000), (vec![1], vec![2]));
        assert_eq!(both(0x0522_00a0), (vec![], vec![5, 7]));
        assert_eq!(both(0x0125_0500), (vec![], vec![]));
    }
}
