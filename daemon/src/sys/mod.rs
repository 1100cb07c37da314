//! The raw system calls: every `unsafe` of the daemon is in this folder.
//!
//! Each function is safe to call with any argument: what the kernel might read or write through a pointer is fixed
//! here, not by the caller. Nothing here knows why a call is made.

mod arrays;
mod btf;
mod copy;
mod dma_buf;
mod drm;
mod dumb;
mod expbuf;
pub mod fbio;
mod fdinfo;
mod framebuffer;
mod lease;
mod listen_fds;
mod malloc;
mod map;
mod mirror;
mod notify;
mod pagemap;
mod passrights;
mod planes;
mod process;
mod procmap;
mod readiness;
mod refused;
mod signals;
mod spawn;
mod steady;
mod terminal;
mod udmabuf;
mod v4l2;
mod vma_object;

pub use arrays::{HostPayload, ext_controls, ioctl_with_array};
pub use copy::copy;
pub use dma_buf::{CpuUse, sync_end, sync_start};
pub use drm::{DrmFramebuffer, drop_master, framebuffer, gem_close, map_offset, prime_export};
pub use dumb::DumbPixels;
pub use expbuf::export_buffer;
pub use fdinfo::{field, own_fdinfo};
pub use framebuffer::{ScreenMemory, screen_memory};
pub use lease::LeasedFile;
pub use listen_fds::listen_fds;
pub use malloc::share_arenas;
pub use map::Mapping;
pub use mirror::{Mirror, page_size};
pub use notify::{Notification, receive};
pub use pagemap::{frame_of, is_swap_backed};
pub use passrights::refuse_files;
pub use planes::buffer_ioctl;
pub use process::{
    MemoryFault, RemoteMemory, pidfd_open_thread, read_byte, read_bytes, read_into, write_bytes, write_from,
};
pub use procmap::{Vma, query_vma, query_vma_unnamed};
pub use readiness::{Watched, register};
pub use refused::tell_of_refused_calls;
pub use signals::default_sigpipe;
pub use spawn::spawn;
pub use steady::SteadyMemory;
pub use terminal::is_in_graphics_mode;
pub use udmabuf::udmabuf;
pub use v4l2::{ioctl, poll};
pub use vma_object::object_at;
