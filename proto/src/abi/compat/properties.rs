//! What holds for bytes of any kind and number, whatever the struct.

use super::piece::{Kind, Piece};
use super::tests::{ABIS, native_of, put, u32_at};
use super::{Layout, layouts};
use proptest::prelude::*;

/// All layouts, with those of arrays.
fn all() -> Vec<&'static Layout> {
    let of_ioctls = ABIS
        .into_iter()
        .flat_map(|abi| (0..=255).flat_map(move |number| layouts(abi, number)));
    let mut all: Vec<&'static Layout> = of_ioctls
        .flat_map(|layout| [Some(*layout), layout.element()])
        .flatten()
        .collect();
    all.dedup();
    all
}

/// The pieces of `layout` with the member that `compat` holds.
fn pieces_of(layout: &Layout, compat: &[u8]) -> Vec<Piece> {
    let mut pieces = layout.pieces.to_vec();
    if let Some(union) = layout.union {
        pieces.extend(union.pieces(compat, union.tag.0).into_iter().flatten());
    }
    pieces
}

/// A layout, bytes for its 32-bit struct and bytes for its 64-bit one; a format is one of a type that there is, or not.
fn case() -> impl Strategy<Value = (&'static Layout, Vec<u8>, Vec<u8>)> {
    (proptest::sample::select(all()), 0u32..17).prop_flat_map(|(layout, tag)| {
        let bytes = |len| proptest::collection::vec(any::<u8>(), len);
        (
            Just(layout),
            Just(tag),
            bytes(layout.compat_size),
            bytes(layout.native_size),
        )
            .prop_map(|(layout, tag, mut compat, mut native)| {
                if let Some(union) = layout.union {
                    put(&mut compat, union.tag.0, &tag.to_ne_bytes());
                    put(&mut native, union.tag.1, &tag.to_ne_bytes());
                }
                (layout, compat, native)
            })
    })
}

proptest! {
    /// What came from the client and comes back unchanged is what the client gave.
    #[test]
    fn there_and_back_changes_only_what_does_not_travel_both_ways((layout, compat, _) in case()) {
        let native = native_of(layout, &compat);
        let mut back = compat.clone();
        layout.from_native(&native, &mut back);
        let mut expected = compat.clone();
        for piece in pieces_of(layout, &compat) {
            if piece.is_given() && !piece.is_taken() {
                expected[piece.compat..piece.compat + piece.compat_len()].fill(0);
            }
        }
        prop_assert_eq!(back, expected);
    }

    /// And what the driver gives is what it would take again, but for the upper half of a number that was cut off.
    #[test]
    fn back_and_there_keeps_every_field_that_travels_both_ways((layout, _, native) in case()) {
        let mut compat = vec![0; layout.compat_size];
        layout.from_native(&native, &mut compat);
        let again = native_of(layout, &compat);
        for piece in pieces_of(layout, &compat) {
            let len = if piece.is_given() && piece.is_taken() { piece.compat_len() } else { 0 };
            let field = piece.native..piece.native + len;
            prop_assert_eq!(&again[field.clone()], &native[field]);
            if len > 0 && piece.kind != Kind::Same(len) {
                let upper = u32_at(&again, piece.native + 4);
                let negative = piece.kind == Kind::Signed && again[piece.native + 3] >= 0x80;
                prop_assert_eq!(upper, if negative { u32::MAX } else { 0 });
            }
        }
    }

    /// Bytes that no piece covers are never written.
    #[test]
    fn bytes_outside_of_the_pieces_stay_as_they_are((layout, compat, native) in case()) {
        let mut covered = vec![false; layout.compat_size];
        for piece in pieces_of(layout, &compat) {
            if piece.is_given() {
                covered[piece.compat..piece.compat + piece.compat_len()].fill(true);
            }
        }
        let mut after = compat.clone();
        layout.from_native(&native, &mut after);
        for (at, covered) in covered.into_iter().enumerate() {
            prop_assert!(covered || after[at] == compat[at], "byte {}", at);
        }
    }

    #[test]
    fn no_length_of_either_side_panics(
        layout in proptest::sample::select(all()),
        tag in 0u32..17,
        mut compat in proptest::collection::vec(any::<u8>(), 0..300),
        mut native in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        if let Some(union) = layout.union {
            for (raw, at) in [(&mut compat, union.tag.0), (&mut native, union.tag.1)] {
                if let Some(there) = raw.get_mut(at..at + 4) {
                    there.copy_from_slice(&tag.to_ne_bytes());
                }
            }
        }
        let mut to = native.clone();
        let _ = layout.to_native(&compat, &mut to);
        prop_assert!(to.get(layout.native_size..).unwrap_or_default().iter().all(|byte| *byte == 0));
        let mut to = compat.clone();
        layout.from_native(&native, &mut to);
        let end = layout.compat_size.min(compat.len());
        prop_assert_eq!(&to[end..], &compat[end..]);
    }
}
