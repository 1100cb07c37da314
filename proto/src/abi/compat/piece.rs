//! A piece is one field: where it lies in both structs and what becomes of it on the way. Knows no struct by name.

/// How a field differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// As many bytes in both.
    Same(usize),
    /// 4 bytes that become 8, the upper half zero (`compat_ptr()`), and are the lower half again on the way back: a
    /// pointer, or a union that holds one.
    Unsigned,
    /// A signed number of 4 bytes that becomes one of 8, and is cut off on the way back: seconds, microseconds.
    Signed,
}

/// Which way a field travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the client and to it.
    Both,
    /// Only from the client, whose own bytes stay.
    In,
    /// The client only receives it.
    Out,
    /// The driver is given zero and the client is given zero.
    Neither,
}

/// One field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// What C calls it, from the struct on; empty for padding that the kernel writes.
    pub(super) field: &'static str,
    /// Byte offset in the 32-bit struct.
    pub(super) compat: usize,
    /// Byte offset in the 64-bit struct.
    pub(super) native: usize,
    pub(super) kind: Kind,
    way: Way,
}

/// `len` bytes that are the same.
pub(super) const fn same(field: &'static str, compat: usize, native: usize, len: usize) -> Piece {
    Piece {
        field,
        compat,
        native,
        kind: Kind::Same(len),
        way: Way::Both,
    }
}

/// See [`Kind::Unsigned`].
pub(super) const fn unsigned(field: &'static str, compat: usize, native: usize) -> Piece {
    Piece {
        kind: Kind::Unsigned,
        ..same(field, compat, native, 0)
    }
}

/// See [`Kind::Signed`].
pub(super) const fn signed(field: &'static str, compat: usize, native: usize) -> Piece {
    Piece {
        kind: Kind::Signed,
        ..same(field, compat, native, 0)
    }
}

/// `len` bytes of padding that the kernel makes zero in the client's struct.
pub(super) const fn padding(compat: usize, native: usize, len: usize) -> Piece {
    same("", compat, native, len).neither()
}

impl Piece {
    /// Taken from the client and never given back.
    pub(super) const fn taken(mut self) -> Self {
        self.way = Way::In;
        self
    }

    /// The client only receives it.
    pub(super) const fn out(mut self) -> Self {
        self.way = Way::Out;
        self
    }

    /// Zero for both.
    pub(super) const fn neither(mut self) -> Self {
        self.way = Way::Neither;
        self
    }

    /// Is anything of the client's kept?
    pub(super) const fn is_taken(&self) -> bool {
        matches!(self.way, Way::Both | Way::In)
    }

    /// Is anything written to the client, be it zero?
    #[cfg(test)]
    pub(super) const fn is_given(&self) -> bool {
        !matches!(self.way, Way::In)
    }

    /// Bytes in the 32-bit struct.
    pub(super) const fn compat_len(&self) -> usize {
        match self.kind {
            Kind::Same(len) => len,
            Kind::Unsigned | Kind::Signed => 4,
        }
    }

    /// Bytes in the 64-bit struct.
    pub(super) const fn native_len(&self) -> usize {
        match self.kind {
            Kind::Same(len) => len,
            Kind::Unsigned | Kind::Signed => 8,
        }
    }

    const fn moved(mut self, compat: usize, native: usize) -> Self {
        self.compat += compat;
        self.native += native;
        self
    }

    pub(super) fn take(self, compat: &[u8], native: &mut [u8]) {
        if !self.is_taken() {
            return;
        }
        match self.kind {
            Kind::Same(len) => copy(compat, self.compat, native, self.native, len),
            Kind::Unsigned => {
                let wide = number_at(compat, self.compat)
                    .map(u32::from_ne_bytes)
                    .map(u64::from);
                put(native, self.native, wide.map(u64::to_ne_bytes));
            }
            Kind::Signed => {
                let wide = number_at(compat, self.compat)
                    .map(i32::from_ne_bytes)
                    .map(i64::from);
                put(native, self.native, wide.map(i64::to_ne_bytes));
            }
        }
    }

    pub(super) fn give(self, native: &[u8], compat: &mut [u8]) {
        let at = self.compat;
        match (self.way, self.kind) {
            (Way::In, _) => {}
            (Way::Neither, _) => {
                if let Some(bytes) = compat.get_mut(at..at + self.compat_len()) {
                    bytes.fill(0);
                }
            }
            (_, Kind::Same(len)) => copy(native, self.native, compat, at, len),
            // The lower half comes first.
            (_, Kind::Unsigned | Kind::Signed) => put(compat, at, number_at(native, self.native)),
        }
    }
}

/// Copies `len` bytes, or none if either side has not as many.
fn copy(from: &[u8], from_at: usize, to: &mut [u8], to_at: usize, len: usize) {
    if let (Some(from), Some(to)) = (from.get(from_at..from_at + len), to.get_mut(to_at..to_at + len)) {
        to.copy_from_slice(from);
    }
}

fn number_at(from: &[u8], at: usize) -> Option<[u8; 4]> {
    from.get(at..)?.first_chunk().copied()
}

/// Writes `bytes` at `at`, if there are any and they fit.
fn put<const LEN: usize>(to: &mut [u8], at: usize, bytes: Option<[u8; LEN]>) {
    if let (Some(bytes), Some(to)) = (bytes, to.get_mut(at..at + LEN)) {
        to.copy_from_slice(&bytes);
    }
}

/// A union: what it holds depends on a `u32` before it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Union {
    /// Byte offset of that `u32` in the 32-bit struct and in the 64-bit one.
    pub(super) tag: (usize, usize),
    /// Byte offset of the union in the 32-bit struct and in the 64-bit one.
    pub(super) start: (usize, usize),
    /// Its size in bytes.
    pub(super) len: usize,
    /// What C calls it.
    pub(super) field: &'static str,
    pub(super) members: &'static [Member],
}

/// A member of a union.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// The values of the tag that mean it.
    pub(super) is_one_of: &'static [u32],
    /// Its fields, counted from the start of the union.
    pub(super) pieces: &'static [Piece],
}

impl Union {
    /// The fields that the union of this struct holds, if its tag is a known one.
    pub(super) fn pieces(&self, tagged: &[u8], tag: usize) -> Option<impl Iterator<Item = Piece>> {
        let tag = u32::from_ne_bytes(number_at(tagged, tag)?);
        let member = self
            .members
            .iter()
            .find(|member| member.is_one_of.contains(&tag))?;
        let (compat, native) = self.start;
        Some(member.pieces.iter().map(move |piece| piece.moved(compat, native)))
    }

    /// Panics unless the union is clear of `pieces`, lies in the struct, and its members lie in it.
    pub(super) const fn assert_within(&self, pieces: &[Piece], compat_size: usize, native_size: usize) {
        let (compat_end, native_end) = (self.start.0 + self.len, self.start.1 + self.len);
        assert!(compat_end <= compat_size && native_end <= native_size);
        assert!(self.tag.0 + 4 <= self.start.0 && self.tag.1 + 4 <= self.start.1);
        let mut at = 0;
        while at < pieces.len() {
            let piece = &pieces[at];
            let before = piece.compat + piece.compat_len() <= self.start.0
                && piece.native + piece.native_len() <= self.start.1;
            let after = piece.compat >= compat_end && piece.native >= native_end;
            assert!(before || after, "a piece overlaps the union");
            at += 1;
        }
        let mut at = 0;
        while at < self.members.len() {
            assert_in_order(self.members[at].pieces, self.len, self.len);
            at += 1;
        }
    }
}

/// Panics unless `pieces` ascend in both structs, overlap in none, and end within both.
pub(super) const fn assert_in_order(pieces: &[Piece], compat_size: usize, native_size: usize) {
    let (mut compat_end, mut native_end) = (0, 0);
    let mut at = 0;
    while at < pieces.len() {
        let piece = &pieces[at];
        assert!(piece.compat >= compat_end, "pieces of the 32-bit struct overlap");
        assert!(piece.native >= native_end, "pieces of the 64-bit struct overlap");
        compat_end = piece.compat + piece.compat_len();
        native_end = piece.native + piece.native_len();
        at += 1;
    }
    assert!(
        compat_end <= compat_size && native_end <= native_size,
        "a piece lies outside"
    );
}
