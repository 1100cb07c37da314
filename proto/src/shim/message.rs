//! The messages on the socket: 64 bytes each way, an fd beside an answer where one is named.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::VERSION;
use crate::Errno;

/// Of each message, in either direction.
pub const MESSAGE_BYTES: usize = 64;

/// `vidc`, as the first four bytes.
const MAGIC: [u8; 4] = *b"vidc";

/// What proves that the asking process has the file open.
pub type Token = [u8; 16];

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw {
    magic: [u8; 4],
    version: u16,
    kind: u16,
    token: Token,
    words: [u64; 5],
}

/// What the shim asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// mmap on the node: what is at `offset` of `length` bytes, with PROT_* and MAP_* of the call. Answered with
    /// [`Answer::Map`] or [`Answer::Errno`].
    Map {
        /// As QUERYBUF has told it, in bytes.
        offset: u64,
        /// Bytes.
        length: u64,
        /// `PROT_*`
        prot: u32,
        /// `MAP_*`
        flags: u32,
    },
    /// The fd that EXPBUF has left under this number. Answered with [`Answer::File`].
    Fetch {
        /// What EXPBUF has written into `fd`.
        ticket: u32,
    },
    /// What the calling process is to move before it calls again. Answered with [`Answer::Move`] or
    /// [`Answer::Nothing`].
    NextMove,
    /// What came of a move. Answered with [`Answer::Nothing`].
    Moved {
        /// As the move said.
        client_addr: u64,
        /// As the move said.
        length: u64,
        /// What came of it.
        outcome: Outcome,
    },
    /// Is the memory that the process has at `client_addr` still one of the session's buffers? [`Answer::Yes`], else
    /// [`Answer::Nothing`].
    IsLent {
        /// As the move said.
        client_addr: u64,
        /// As the move said.
        length: u64,
    },
}

/// What the shim is to do with a stretch of the program's memory: whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Put the dma-buf whose fd comes along in its place, contents kept: adoption.
    Adopt {
        /// Where it begins.
        client_addr: u64,
        /// Bytes, whole pages; the dma-buf has as many or more.
        length: u64,
    },
    /// Put ordinary memory in its place, contents kept.
    GiveBack {
        /// Where it begins.
        client_addr: u64,
        /// Bytes, whole pages.
        length: u64,
    },
}

macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// What came of a [`Move`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Outcome { $($(#[$doc])* $name = $number,)* }

        impl Outcome {
            /// All of them.
            pub const ALL: &'static [Outcome] = &[$(Outcome::$name,)*];

            /// For people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Outcome::$name => $text,)* }
            }
        }
    };
}

outcomes! {
    /// It was done.
    Done = 0, "done";
    /// The program or its user has switched adoption off.
    SwitchedOff = 1, "adoption is switched off in the program's environment";
    /// No userfaultfd: a container's seccomp filter, or a kernel without.
    NoUserfault = 2, "the program has no userfaultfd, without which other threads could lose what they write";
    /// The stretch is not one mapping of ordinary private memory.
    NotOrdinary = 3, "the memory is not one stretch of ordinary private memory";
    /// The shim's table has no room.
    TableFull = 4, "the shim has no room for more";
    /// Something the kernel has refused.
    Refused = 5, "the kernel has refused the exchange";
    /// There is nothing of ours there any more (the program has unmapped it).
    Gone = 6, "nothing of ours is there any more";
}

/// What the daemon answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The call fails so.
    Errno(Errno),
    /// Map the fd that comes along, from this offset in bytes.
    Map {
        /// Bytes.
        offset: u64,
    },
    /// The fd that comes along is the client's from now on.
    File {
        /// With O_CLOEXEC?
        close_on_exec: bool,
    },
    /// Do this first; of [`Move::Adopt`] the dma-buf comes along.
    Move(Move),
    /// Yes.
    Yes,
    /// There is nothing (more), or it was noted.
    Nothing,
}

/// Why a message is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskError {
    /// It has another size, or does not begin as ours do.
    NotOurs,
    /// It is of another version.
    Version(u16),
    /// It is of no kind that there is.
    Kind(u16),
}

impl std::fmt::Display for AskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotOurs => f.write_str("it is no message of the shim's"),
            Self::Version(version) => write!(f, "it is of version {version}, and this is {VERSION}"),
            Self::Kind(kind) => write!(f, "there is no kind {kind} of message"),
        }
    }
}

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// The low half of a word.
const fn low(word: u64) -> u32 {
    (word & 0xffff_ffff) as u32
}

fn raw(bytes: &[u8]) -> Result<Raw, AskError> {
    let raw = Raw::read_from_bytes(bytes).map_err(|_| AskError::NotOurs)?;
    if raw.magic != MAGIC {
        return Err(AskError::NotOurs);
    }
    if raw.version != VERSION {
        return Err(AskError::Version(raw.version));
    }
    Ok(raw)
}

fn bytes(kind: u16, token: Token, words: [u64; 5]) -> [u8; MESSAGE_BYTES] {
    let raw = Raw {
        magic: MAGIC,
        version: VERSION,
        kind,
        token,
        words,
    };
    zerocopy::transmute!(raw)
}

impl Ask {
    /// As it goes over the socket.
    #[must_use]
    pub fn encode(self, token: Token) -> [u8; MESSAGE_BYTES] {
        let (kind, words) = match self {
            Self::Map {
                offset,
                length,
                prot,
                flags,
            } => (1, [offset, length, pair(prot, flags), 0, 0]),
            Self::Fetch { ticket } => (2, [pair(ticket, 0), 0, 0, 0, 0]),
            Self::NextMove => (3, [0; 5]),
            Self::Moved {
                client_addr,
                length,
                outcome,
            } => (4, [client_addr, length, pair(outcome as u32, 0), 0, 0]),
            Self::IsLent { client_addr, length } => (5, [client_addr, length, 0, 0, 0]),
        };
        bytes(kind, token, words)
    }

    /// What `message` asks, and the token that comes with it.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn decode(message: &[u8]) -> Result<(Self, Token), AskError> {
        let raw = raw(message)?;
        let [first, second, third, ..] = raw.words;
        let ask = match raw.kind {
            1 => Self::Map {
                offset: first,
                length: second,
                prot: low(third),
                flags: low(third >> 32),
            },
            2 => Self::Fetch { ticket: low(first) },
            3 => Self::NextMove,
            4 => Self::Moved {
                client_addr: first,
                length: second,
                // What a newer shim says that we do not know is a refusal all the same.
                outcome: *Outcome::ALL
                    .iter()
                    .find(|outcome| **outcome as u32 == low(third))
                    .unwrap_or(&Outcome::Refused),
            },
            5 => Self::IsLent {
                client_addr: first,
                length: second,
            },
            kind => return Err(AskError::Kind(kind)),
        };
        Ok((ask, raw.token))
    }
}

impl Answer {
    /// As it goes over the socket.
    #[must_use]
    pub fn encode(self) -> [u8; MESSAGE_BYTES] {
        let (kind, words) = match self {
            Self::Errno(errno) => (101, [u64::from(errno.raw().unsigned_abs()), 0, 0, 0, 0]),
            Self::Map { offset } => (102, [offset, 0, 0, 0, 0]),
            Self::File { close_on_exec } => (103, [u64::from(close_on_exec), 0, 0, 0, 0]),
            Self::Move(Move::Adopt { client_addr, length }) => (104, [client_addr, length, 0, 0, 0]),
            Self::Move(Move::GiveBack { client_addr, length }) => (105, [client_addr, length, 0, 0, 0]),
            Self::Yes => (106, [0; 5]),
            Self::Nothing => (107, [0; 5]),
        };
        bytes(kind, [0; 16], words)
    }

    /// What `message` answers.
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn decode(message: &[u8]) -> Result<Self, AskError> {
        let raw = raw(message)?;
        let [first, second, ..] = raw.words;
        Ok(match raw.kind {
            // What cast_signed() does, which Rust 1.85 does not have: the 32-bit shim is built with that.
            101 => Self::Errno(Errno::from_raw(i32::from_ne_bytes(low(first).to_ne_bytes()))),
            102 => Self::Map { offset: first },
            103 => Self::File {
                close_on_exec: first != 0,
            },
            104 => Self::Move(Move::Adopt {
                client_addr: first,
                length: second,
            }),
            105 => Self::Move(Move::GiveBack {
                client_addr: first,
                length: second,
            }),
            106 => Self::Yes,
            107 => Self::Nothing,
            kind => return Err(AskError::Kind(kind)),
        })
    }

    /// Does an fd come with it?
    #[must_use]
    pub const fn has_file(self) -> bool {
        matches!(
            self,
            Self::Map { .. } | Self::File { .. } | Self::Move(Move::Adopt { .. })
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, Ask, AskError, MESSAGE_BYTES, Move, Outcome};
    use crate::Errno;
    use proptest::prelude::*;

    fn asks() -> impl Strategy<Value = Ask> {
        prop_oneof![
            (any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>()).prop_map(
                |(offset, length, prot, flags)| Ask::Map {
                    offset,
                    length,
                    prot,
                    flags
                }
            ),
            any::<u32>().prop_map(|ticket| Ask::Fetch { ticket }),
            Just(Ask::NextMove),
            (any::<u64>(), any::<u64>(), 0..Outcome::ALL.len()).prop_map(|(client_addr, length, at)| {
                Ask::Moved {
                    client_addr,
                    length,
                    outcome: Outcome::ALL[at],
                }
            }),
            (any::<u64>(), any::<u64>())
                .prop_map(|(client_addr, length)| Ask::IsLent { client_addr, length }),
        ]
    }

    fn answers() -> impl Strategy<Value = Answer> {
        prop_oneof![
            (1..4096).prop_map(|raw| Answer::Errno(Errno::from_raw(raw))),
            any::<u64>().prop_map(|offset| Answer::Map { offset }),
            any::<bool>().prop_map(|close_on_exec| Answer::File { close_on_exec }),
            (any::<u64>(), any::<u64>())
                .prop_map(|(client_addr, length)| Answer::Move(Move::Adopt { client_addr, length })),
            (any::<u64>(), any::<u64>())
                .prop_map(|(client_addr, length)| Answer::Move(Move::GiveBack { client_addr, length })),
            Just(Answer::Yes),
            Just(Answer::Nothing),
        ]
    }

    proptest! {
        #[test]
        fn what_is_asked_arrives(ask in asks(), token: [u8; 16]) {
            prop_assert_eq!(Ask::decode(&ask.encode(token)), Ok((ask, token)));
        }

        #[test]
        fn what_is_answered_arrives(answer in answers()) {
            prop_assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }

        #[test]
        fn any_bytes_are_a_message_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if bytes.len() != MESSAGE_BYTES || !bytes.starts_with(b"vidc") {
                prop_assert_eq!(Ask::decode(&bytes), Err(AskError::NotOurs));
                prop_assert_eq!(Answer::decode(&bytes), Err(AskError::NotOurs));
            }
        }

        #[test]
        fn another_version_is_told_apart(ask in asks(), version in 2u16..) {
            let mut message = ask.encode([0; 16]);
            message[4..6].copy_from_slice(&version.to_ne_bytes());
            prop_assert_eq!(Ask::decode(&message), Err(AskError::Version(version)));
        }

        #[test]
        fn an_unknown_kind_is_refused(kind in 6u16..100) {
            let mut message = Ask::NextMove.encode([0; 16]);
            message[6..8].copy_from_slice(&kind.to_ne_bytes());
            prop_assert_eq!(Ask::decode(&message), Err(AskError::Kind(kind)));
            prop_assert_eq!(Answer::decode(&message), Err(AskError::Kind(kind)));
        }
    }
}
