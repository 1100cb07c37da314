//! Kernel structs as bytes: explicit padding, no pointers, safe to read from any memory.

pub mod compat;
pub mod controls;
pub mod fb;
pub mod format;
pub mod v4l2;

/// Whose layout the structs of a client have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ClientAbi {
    /// That of this program.
    #[default]
    Native,
    /// A 32-bit x86 program on a 64-bit kernel: 64-bit integers are aligned to 4 bytes.
    I386,
    /// A 32-bit ARM program (EABI) on a 64-bit kernel.
    Arm32,
}

impl ClientAbi {
    /// What a 32-bit client has on this machine: CUSE says that it is one, but not of which kind.
    pub const COMPAT: Self = if cfg!(target_arch = "aarch64") {
        ClientAbi::Arm32
    } else {
        ClientAbi::I386
    };
}
