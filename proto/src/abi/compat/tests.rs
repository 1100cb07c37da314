//! What becomes of each struct, by example.

use super::{ClientAbi, Layout, layouts};
use crate::Errno;
use std::collections::BTreeSet;

pub(super) const ABIS: [ClientAbi; 2] = [ClientAbi::I386, ClientAbi::Arm32];

fn find(abi: ClientAbi, number: u8, size: usize) -> &'static Layout {
    let mut found = layouts(abi, number).iter();
    found
        .find(|layout| layout.compat_size == size)
        .expect("a layout of this size")
}

pub(super) fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(*raw[at..].first_chunk().expect("four bytes"))
}

fn u64_at(raw: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(*raw[at..].first_chunk().expect("eight bytes"))
}

pub(super) fn put(raw: &mut [u8], at: usize, bytes: &[u8]) {
    raw[at..at + bytes.len()].copy_from_slice(bytes);
}

/// `n` bytes of which none is zero and no two neighbours are alike.
fn marked(n: usize) -> Vec<u8> {
    (1..=u8::MAX).cycle().take(n).collect()
}

pub(super) fn native_of(layout: &Layout, compat: &[u8]) -> Vec<u8> {
    let mut native = vec![0xee; layout.native_size];
    // A type of format that there is not is told by a test of its own.
    let _ = layout.to_native(compat, &mut native);
    native
}

/// Sizes of the structs as measured with C compilers (64-bit, i386 with 32- and 64-bit time, arm32 likewise), of the
/// ioctls where one of them differs.
const SIZES: &[(u8, [usize; 5])] = &[
    (4, [208, 204, 204, 204, 204]),
    (5, [208, 204, 204, 204, 204]),
    (9, [88, 68, 76, 68, 80]),
    (10, [48, 44, 44, 44, 44]),
    (11, [48, 44, 44, 44, 44]),
    (15, [88, 68, 76, 68, 80]),
    (17, [88, 68, 76, 68, 80]),
    (25, [72, 64, 64, 72, 72]),
    (26, [80, 76, 76, 80, 80]),
    (40, [40, 36, 36, 36, 36]),
    (41, [40, 36, 36, 36, 36]),
    (64, [208, 204, 204, 204, 204]),
    (71, [32, 24, 24, 24, 24]),
    (72, [32, 24, 24, 24, 24]),
    (73, [32, 24, 24, 24, 24]),
    (89, [136, 120, 128, 128, 136]),
    (92, [256, 248, 248, 248, 248]),
    (93, [88, 68, 76, 68, 80]),
];

#[test]
fn sizes_are_those_measured_and_no_other_ioctl_has_a_layout() {
    for number in 0..=255 {
        let sizes = SIZES
            .iter()
            .find(|(other, _)| *other == number)
            .map(|(_, sizes)| sizes);
        for (abi, measured) in ABIS.into_iter().zip([1..3, 3..5]) {
            let expected: BTreeSet<_> = sizes.map_or(BTreeSet::new(), |sizes| {
                sizes[measured]
                    .iter()
                    .copied()
                    .filter(|size| *size != sizes[0])
                    .collect()
            });
            let layouts = layouts(abi, number);
            let found: BTreeSet<_> = layouts.iter().map(|layout| layout.compat_size()).collect();
            assert_eq!(found, expected, "{abi:?} {number}");
            for layout in layouts {
                assert_eq!(
                    Some(layout.native_size()),
                    sizes.map(|sizes| sizes[0]),
                    "{number}"
                );
            }
        }
    }
    assert!((0..=255).all(|number| layouts(ClientAbi::Native, number).is_empty()));
}

#[test]
fn a_userptr_qbuf_of_every_32_bit_layout_is_the_64_bit_one() {
    let cases = [
        (ClientAbi::I386, 68, 20, 4, 44),
        (ClientAbi::I386, 76, 20, 8, 52),
        (ClientAbi::Arm32, 68, 20, 4, 44),
        (ClientAbi::Arm32, 80, 24, 8, 56),
    ];
    for (abi, size, time, time_len, sequence) in cases {
        let layout = find(abi, 15, size);
        let mut compat = vec![0; size];
        for (at, word) in [3u32, 2, 614_400, 0x2000, 1].into_iter().enumerate() {
            put(&mut compat, at * 4, &word.to_ne_bytes());
        }
        put(&mut compat, time, &(-5i64).to_ne_bytes()[..time_len]);
        put(
            &mut compat,
            time + time_len,
            &999_999i64.to_ne_bytes()[..time_len],
        );
        put(&mut compat, sequence - 16, &marked(16));
        let tail = [77u32, 2, 0xf7d0_1010, 614_400, 0, 9];
        for (at, word) in tail.into_iter().enumerate() {
            put(&mut compat, sequence + at * 4, &word.to_ne_bytes());
        }

        let native = native_of(layout, &compat);
        let words = [0, 4, 8, 12, 16, 20].map(|at| u32_at(&native, at));
        assert_eq!(words, [3, 2, 614_400, 0x2000, 1, 0], "{abi:?} {size}");
        assert_eq!(u64_at(&native, 24).cast_signed(), -5);
        assert_eq!(u64_at(&native, 32), 999_999);
        assert_eq!(native[40..56], marked(16));
        assert_eq!([56, 60].map(|at| u32_at(&native, at)), [77, 2]);
        assert_eq!(u64_at(&native, 64), 0xf7d0_1010, "zero-extended");
        assert_eq!([72, 76, 80, 84].map(|at| u32_at(&native, at)), [614_400, 0, 9, 0]);

        let mut back = vec![0; size];
        layout.from_native(&native, &mut back);
        assert_eq!(back, compat);
    }
}

#[test]
fn a_time_that_32_bits_cannot_hold_is_cut_off() {
    let mut native = vec![0; 88];
    put(&mut native, 24, &0x1_8000_0001i64.to_ne_bytes());
    let mut compat = vec![0; 68];
    find(ClientAbi::I386, 17, 68).from_native(&native, &mut compat);
    assert_eq!(u32_at(&compat, 20), 0x8000_0001);
}

#[test]
fn reserved_fields_and_padding_of_a_buffer_are_zero_for_both_sides() {
    let layout = find(ClientAbi::Arm32, 15, 80);
    let native = native_of(layout, &[0xff; 80]);
    assert_eq!([20, 76, 84].map(|at| u32_at(&native, at)), [0; 3]);
    let mut compat = [0xff; 80];
    layout.from_native(&[0xff; 88], &mut compat);
    assert_eq!([20, 72].map(|at| u32_at(&compat, at)), [0; 2]);

    let plane = layout.element().expect("planes differ");
    assert!(native_of(plane, &[0xff; 60])[20..].iter().all(|byte| *byte == 0));
    let mut compat = [0xff; 60];
    plane.from_native(&[0xff; 64], &mut compat);
    assert!(compat[16..].iter().all(|byte| *byte == 0));
}

#[test]
fn every_buffer_type_has_its_member_of_the_format() {
    let sizes = [48, 48, 0, 44, 44, 112, 112, 0, 192, 192, 32, 32, 20, 20];
    for (buf_type, size) in (1u32..).zip(sizes) {
        for (number, compat_at, native_at, compat_size) in [(5, 0, 0, 204), (92, 12, 16, 248)] {
            let layout = find(ClientAbi::I386, number, compat_size);
            let mut compat = marked(compat_size);
            put(&mut compat, compat_at, &buf_type.to_ne_bytes());
            let native = native_of(layout, &compat);
            assert_eq!(u32_at(&native, native_at), buf_type);
            if size == 0 {
                continue;
            }
            let (from, to) = (compat_at + 4, native_at + 8);
            assert_eq!(
                native[to..to + size],
                compat[from..from + size],
                "type {buf_type}"
            );
            assert!(native[to + size..to + 200].iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn an_overlay_window_keeps_its_clips_and_has_no_bitmap() {
    let layout = find(ClientAbi::Arm32, 4, 204);
    for buf_type in [3u32, 8] {
        let mut compat = marked(204);
        put(&mut compat, 0, &buf_type.to_ne_bytes());
        let native = native_of(layout, &compat);
        assert_eq!(native[8..32], compat[4..28]);
        assert_eq!((&native[32..36], &native[36..40]), (&compat[28..32], &[0; 4][..]));
        assert_eq!(native[40..44], compat[32..36]);
        assert!(native[44..56].iter().all(|byte| *byte == 0));
        assert_eq!(native[56], compat[40]);
        assert!(native[57..].iter().all(|byte| *byte == 0));

        let mut native = marked(208);
        put(&mut native, 0, &buf_type.to_ne_bytes());
        let mut back = vec![0xee; 204];
        layout.from_native(&native, &mut back);
        assert_eq!(back[4..28], native[8..32]);
        assert_eq!((&back[28..32], &back[32..36]), (&native[32..36], &native[40..44]));
        assert_eq!(back[36..40], [0; 4]);
        assert_eq!(back[40..44], [native[56], 0, 0, 0]);
        assert!(
            back[44..].iter().all(|byte| *byte == 0xee),
            "not the kernel's to write"
        );
    }
}

#[test]
fn a_format_of_a_type_that_there_is_not_is_einval() {
    let layout = find(ClientAbi::I386, 64, 204);
    for buf_type in [0u32, 15, 0x80, u32::MAX] {
        let mut compat = vec![0xff; 204];
        put(&mut compat, 0, &buf_type.to_ne_bytes());
        assert_eq!(layout.to_native(&compat, &mut [0; 208]), Err(Errno::EINVAL));
        let mut back = vec![0xee; 204];
        layout.from_native(&compat, &mut back);
        assert!(back[4..].iter().all(|byte| *byte == 0xee));
    }
}

#[test]
fn pointers_of_arrays_are_widened_and_stay_the_clients_own() {
    for (number, size, at) in [(41, 36, 32), (72, 24, 20)] {
        let layout = find(ClientAbi::I386, number, size);
        let mut compat = marked(size);
        put(&mut compat, at, &0xfedc_ba98u32.to_ne_bytes());
        let native = native_of(layout, &compat);
        assert_eq!(u64_at(&native, layout.native_size - 8), 0xfedc_ba98);
        let before = compat.clone();
        layout.from_native(&native, &mut compat);
        assert_eq!(compat, before);
    }

    let control = find(ClientAbi::I386, 72, 24).element().expect("controls differ");
    let compat = marked(20);
    let native = native_of(control, &compat);
    assert_eq!(native[..16], compat[..16]);
    assert_eq!(
        native[16..],
        [0; 4],
        "what lies behind a pointer of 4 bytes is no part of it"
    );
    let mut back = marked(20);
    control.from_native(&[0xff; 20], &mut back);
    assert_eq!(back[..12], [0xff; 12]);
    assert_eq!(
        back[12..],
        marked(20)[12..],
        "nothing of ours reaches the client as a pointer"
    );
}

#[test]
fn an_event_of_either_time_says_the_same() {
    let mut native = marked(136);
    put(&mut native, 80, &1_700_000_000i64.to_ne_bytes());
    put(&mut native, 88, &123_456_789i64.to_ne_bytes());
    let cases = [
        (ClientAbi::I386, 120, 4, 4),
        (ClientAbi::I386, 128, 4, 8),
        (ClientAbi::Arm32, 128, 8, 4),
    ];
    for (abi, size, union, time_len) in cases {
        let mut compat = vec![0; size];
        find(abi, 89, size).from_native(&native, &mut compat);
        assert_eq!(compat[..4], native[..4]);
        assert_eq!(compat[union..union + 72], native[8..80]);
        let time = union + 72;
        assert_eq!(compat[time..time + time_len], native[80..80 + time_len]);
        let nanoseconds = time + time_len;
        assert_eq!(
            compat[nanoseconds..nanoseconds + time_len],
            native[88..88 + time_len]
        );
        let id = nanoseconds + time_len;
        assert_eq!(compat[id..id + 36], native[96..132], "{abi:?} {size}");
        assert!(
            native_of(find(abi, 89, size), &compat)
                .iter()
                .all(|byte| *byte == 0)
        );
    }
}

#[test]
fn a_standard_takes_the_index_only_and_gives_everything() {
    let layout = find(ClientAbi::I386, 25, 64);
    let native = native_of(layout, &marked(64));
    assert_eq!(native[..4], marked(64)[..4]);
    assert!(native[4..].iter().all(|byte| *byte == 0));
    let (native, mut compat) = (marked(72), vec![0; 64]);
    layout.from_native(&native, &mut compat);
    assert_eq!((&compat[..4], &compat[4..]), (&native[..4], &native[8..68]));
}

#[test]
fn a_framebuffer_base_comes_from_the_driver_and_never_from_the_client() {
    let layout = find(ClientAbi::I386, 10, 44);
    assert_eq!(u64_at(&native_of(layout, &marked(44)), 8), 0);
    let (native, mut compat) = (marked(48), vec![0; 44]);
    layout.from_native(&native, &mut compat);
    assert_eq!((&compat[..12], &compat[12..]), (&native[..12], &native[16..]));
}

#[test]
fn an_input_loses_the_padding_at_its_end() {
    let layout = find(ClientAbi::I386, 26, 76);
    let native = native_of(layout, &marked(76));
    assert_eq!((&native[..76], &native[76..]), (&marked(76)[..], &[0; 4][..]));
}
