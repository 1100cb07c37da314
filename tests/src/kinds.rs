//! Every kind of memory that a program's pointer may lie in, made in the suite's own process, with room for one frame
//! and something beside it. What is done with it, and what is right, is none of this module's business.

use std::any::Any;
use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vidcompat_proto::abi::v4l2::{V4l2Buffer, V4l2RequestBuffers};

use crate::setup::{CONTIG_EXPORTER, EXPORTER};
use crate::sys::{self, Area, DmaBuf, HUGE, PAGE, Rights, Source};
use crate::video::{CAPTURE, Video, command, memory, real};

/// What lies beside a frame.
const GUARD: u8 = 0xa5;
/// So much of it is looked at, where there is so much.
const BESIDE: usize = PAGE + 64;

/// `struct fb_fix_screeninfo`
const FBIOGET_FSCREENINFO: u64 = 0x4602;
const DRM_IOCTL_DROP_MASTER: u64 = 0x641f;
const DRM_IOCTL_MODE_CREATE_DUMB: u64 = 0xc020_64b2;
const DRM_IOCTL_MODE_MAP_DUMB: u64 = 0xc010_64b3;

/// Some memory, and where in it a frame is to lie.
pub struct Memory {
    /// The addresses.
    pub area: Area,
    /// Where the frame is to lie in the area.
    pub at: usize,
    /// Bytes of a frame.
    pub size: usize,
    /// What of the area is there.
    span: Range<usize>,
    /// A program that uses it may only read.
    read_only: bool,
    /// The shared object of its first mapping, and where in it that begins.
    object: Option<(Box<dyn AsFd + Send + Sync>, u64)>,
    /// What must stay open or alive for it.
    keep: Vec<Box<dyn Any + Send + Sync>>,
}

/// How a kind is made: for a frame of so many bytes, so many bytes behind its beginning. `None`: this kernel has none.
pub type Maker = fn(size: usize, at: usize) -> anyhow::Result<Option<Memory>>;

/// Whole pages for a frame at `at`, and one more.
fn room(size: usize, at: usize) -> usize {
    (at + size + PAGE).next_multiple_of(PAGE)
}

impl Memory {
    fn new(area: Area, span: Range<usize>, at: usize, size: usize) -> Self {
        let at = span.start + at;
        assert!(at + size <= span.end, "no room for a frame");
        Self {
            area,
            at,
            size,
            span,
            read_only: false,
            object: None,
            keep: vec![],
        }
    }

    /// Room for a frame at `at` of `source`, and a page more.
    fn of(source: Source<'_>, size: usize, at: usize) -> anyhow::Result<Self> {
        Self::of_length(room(size, at), source, size, at)
    }

    fn of_length(length: usize, source: Source<'_>, size: usize, at: usize) -> anyhow::Result<Self> {
        let area = Area::reserve(length)?;
        area.map(0, length, source, Rights::ReadWrite)
            .with_context(|| format!("mmap of {source:?}"))?;
        Ok(Self::new(area, 0..length, at, size))
    }

    /// So many bytes of a file from `offset` on, shared.
    fn of_file(
        file: impl AsFd + Send + Sync + 'static,
        offset: u64,
        length: usize,
        size: usize,
        at: usize,
    ) -> anyhow::Result<Self> {
        let mut memory = Self::of_length(length, Source::Shared(file.as_fd(), offset), size, at)?;
        memory.object = Some((Box::new(file), offset));
        Ok(memory)
    }

    fn keep(mut self, thing: impl Any + Send + Sync) -> Self {
        self.keep.push(Box::new(thing));
        self
    }

    /// Lets go of what it keeps: files are closed, and mappings are all that is left.
    pub fn closed(mut self) -> Self {
        self.keep.clear();
        self.object = None;
        self
    }

    /// The same privately.
    pub fn map_privately_into(&self, area: &Area, length: usize) -> Result<(), Errno> {
        let (fd, offset) = self.object.as_ref().ok_or(Errno::EBADF)?;
        area.map(0, length, Source::Private(fd.as_fd(), *offset), Rights::ReadWrite)
    }

    /// Is there an object that others can map too?
    pub fn is_shared(&self) -> bool {
        self.object.is_some()
    }

    /// Maps the same object from its beginning, or fresh memory where there is none, into another area.
    pub fn map_into(&self, area: &Area, length: usize) -> Result<(), Errno> {
        let source = match &self.object {
            Some((fd, offset)) => Source::Shared(fd.as_fd(), *offset),
            None => Source::Anonymous,
        };
        area.map(0, length, source, Rights::ReadWrite)
    }

    /// Maps the first page of its object, which it has, at this place of another area.
    pub fn map_page(&self, area: &Area, at: usize) -> Result<(), Errno> {
        let (fd, offset) = self.object.as_ref().ok_or(Errno::EINVAL)?;
        area.map(at, PAGE, Source::Shared(fd.as_fd(), *offset), Rights::ReadWrite)
    }

    /// The pointer.
    pub fn pointer(&self) -> u64 {
        self.area.at(self.at)
    }

    /// The frame and what lies beside it.
    fn window(&self) -> Range<usize> {
        let start = self.at.saturating_sub(BESIDE).max(self.span.start);
        start..(self.at + self.size + BESIDE).min(self.span.end)
    }

    /// Makes the frame and what lies beside it something that no frame is.
    pub fn clear(&self) -> anyhow::Result<()> {
        let window = self.window();
        self.put(window.start, &vec![GUARD; window.len()])
    }

    /// Puts a frame there, with something else beside it.
    pub fn fill(&self, frame: &[u8]) -> anyhow::Result<()> {
        assert_eq!(frame.len(), self.size, "a frame");
        self.clear()?;
        self.put(self.at, frame)
    }

    fn put(&self, at: usize, bytes: &[u8]) -> anyhow::Result<()> {
        if self.read_only {
            let length = self.span.end;
            self.area.protect(0, length, Rights::ReadWrite)?;
            self.area.write(at, bytes)?;
            self.area.protect(0, length, Rights::ReadOnly)?;
            return Ok(());
        }
        self.area.write(at, bytes)
    }

    /// Fails unless the frame is there, and nothing beside it has changed.
    pub fn holds(&self, frame: &[u8]) -> anyhow::Result<()> {
        let window = self.window();
        let bytes = self.area.read(window.start, window.len())?;
        let (before, rest) = bytes.split_at(self.at - window.start);
        let (found, after) = rest.split_at(self.size);
        let differing = found.iter().zip(frame).position(|(a, b)| a != b);
        ensure!(
            frame.len() == self.size && differing.is_none(),
            "the frame differs from byte {differing:?} on"
        );
        ensure!(
            before.iter().chain(after).all(|byte| *byte == GUARD),
            "bytes beside the frame were written"
        );
        Ok(())
    }

    /// Fails if anything but its first page has changed since [`Self::clear`], and that to the frame's.
    pub fn has_only_page(&self, frame: &[u8]) -> anyhow::Result<()> {
        let bytes = self.area.read(self.at, self.window().end - self.at)?;
        let (page, rest) = bytes.split_at(PAGE);
        ensure!(
            page == &frame[..PAGE] || page.iter().all(|byte| *byte == GUARD),
            "the first page is not the frame's"
        );
        let written = rest.iter().position(|byte| *byte != GUARD);
        ensure!(written.is_none(), "byte {written:?} behind the page was written");
        Ok(())
    }

    /// Fails unless everything is as [`Self::clear`] left it.
    pub fn is_clear(&self) -> anyhow::Result<()> {
        self.is_clear_in(self.window())
    }

    /// The same of these bytes of the area.
    pub fn is_clear_in(&self, range: Range<usize>) -> anyhow::Result<()> {
        let bytes = self.area.read(range.start, range.len())?;
        let written = bytes.iter().position(|byte| *byte != GUARD);
        ensure!(written.is_none(), "byte {written:?} was written");
        Ok(())
    }
}

/// Looks for the framebuffers of these names, and brings about what the kinds need.
pub fn prepare(framebuffers: &[&str]) -> anyhow::Result<()> {
    for name in framebuffers {
        framebuffer_path(name)?;
    }
    // The console draws a cursor on every framebuffer otherwise.
    for entry in fs::read_dir("/sys/class/vtconsole")? {
        let path = entry?.path();
        if fs::read_to_string(path.join("name"))?.contains("frame buffer") {
            fs::write(path.join("bind"), "0")?;
        }
    }
    fs::write("/proc/sys/vm/nr_hugepages", "8")?;
    Ok(())
}

// ---- plain memory

/// malloc below its limit for mappings of their own: from the heap.
pub fn heap_of_malloc(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    let length = at + size + 64;
    Ok(Some(Memory::new(Area::malloc(length)?, 0..length, at, size)))
}

/// malloc above it.
pub fn malloc(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    let length = at + size + 300_000;
    Ok(Some(Memory::new(Area::malloc(length)?, 0..length, at, size)))
}

pub fn anonymous(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    Memory::of(Source::Anonymous, size, at).map(Some)
}

pub fn shared_anonymous(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    Memory::of(Source::SharedAnonymous, size, at).map(Some)
}

pub fn read_only(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    let mut memory = Memory::of(Source::Anonymous, size, at)?;
    memory.read_only = true;
    Ok(Some(memory))
}

pub fn huge(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    let length = (at + size + PAGE).next_multiple_of(HUGE);
    Memory::of_length(length, Source::Huge, size, at).map(Some)
}

/// Two mappings of anonymous memory, which the kernel cannot make one; the frame lies in both.
pub fn two_mappings(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    let memory = Memory::of(Source::Anonymous, size, at)?;
    let half = half(size, at);
    let rest = memory.area.len() - half;
    memory
        .area
        .map(half, rest, Source::SharedAnonymous, Rights::ReadWrite)?;
    Ok(Some(memory))
}

/// The page in which the second half of a frame begins.
fn half(size: usize, at: usize) -> usize {
    (at + size / 2).next_multiple_of(PAGE)
}

// ---- files

/// A memfd of so many bytes.
pub fn memfd_of(length: usize, seals: SealFlag) -> anyhow::Result<File> {
    let file = File::from(memfd_create(
        c"memory",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?);
    file.set_len(length as u64)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

fn memfd_with(seals: SealFlag, size: usize, at: usize) -> anyhow::Result<Memory> {
    let file = memfd_of(room(size, at), seals)?;
    Memory::of_file(file, 0, room(size, at), size, at)
}

pub fn memfd(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    memfd_with(SealFlag::empty(), size, at).map(Some)
}

pub fn sealed_memfd(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    memfd_with(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW, size, at).map(Some)
}

pub fn closed_memfd(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    Ok(memfd(size, at)?.map(Memory::closed))
}

pub fn huge_memfd(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    let file = File::from(memfd_create(
        c"huge",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB,
    )?);
    let length = (at + size + PAGE).next_multiple_of(HUGE);
    file.set_len(length as u64)?;
    Memory::of_file(file, 0, length, size, at).map(Some)
}

/// A file without a name in `/dev/shm`.
fn file(length: usize) -> anyhow::Result<File> {
    let path = PathBuf::from(format!("/dev/shm/memory-{}", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    fs::remove_file(&path)?;
    file.set_len(length as u64)?;
    Ok(file)
}

pub fn shared_file(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    let file = file(at + size + 2 * PAGE)?;
    Memory::of_file(file, 0, room(size, at), size, at).map(Some)
}

pub fn private_file(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    let file = file(at + size + 2 * PAGE)?;
    Ok(Some(
        Memory::of(Source::Private(file.as_fd(), 0), size, at)?.keep(file),
    ))
}

// ---- framebuffers and other device memory

fn read_write(path: impl AsRef<std::path::Path>) -> anyhow::Result<File> {
    let path = path.as_ref();
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.with_context(|| path.display().to_string())
}

pub fn framebuffer_path(name: &str) -> anyhow::Result<PathBuf> {
    let mut names = vec![];
    for entry in fs::read_dir("/sys/class/graphics")? {
        let entry = entry?;
        let found = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if found.trim() == name {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
        names.push(found);
    }
    bail!("there is no framebuffer {name}: {names:?}")
}

/// All of a framebuffer, as old programs map it.
pub fn framebuffer(name: &str, size: usize, at: usize) -> anyhow::Result<Memory> {
    let file = read_write(framebuffer_path(name)?)?;
    let mut fix = [0_u8; 80];
    sys::ioctl(&file, FBIOGET_FSCREENINFO, &mut fix).context("FBIOGET_FSCREENINFO")?;
    // smem_len
    let length = u32::from_ne_bytes([fix[24], fix[25], fix[26], fix[27]]) as usize;
    Memory::of_file(file, 0, length, size, at)
}

pub fn vesafb(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    framebuffer("VESA VGA", size, at).map(Some)
}

pub fn vfb(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    framebuffer("Virtual FB", size, at).map(Some)
}

pub fn virtio_gpu_fb(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    framebuffer("virtio_gpudrmfb", size, at).map(Some)
}

pub fn bochs_fb(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    framebuffer("bochs-drmdrmfb", size, at).map(Some)
}

pub fn closed_vesafb(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    Ok(vesafb(size, at)?.map(Memory::closed))
}

pub fn closed_virtio_gpu_fb(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    Ok(virtio_gpu_fb(size, at)?.map(Memory::closed))
}

pub fn private_vfb(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    let file = read_write(framebuffer_path("Virtual FB")?)?;
    Ok(Some(
        Memory::of(Source::Private(file.as_fd(), 0), size, at)?.keep(file),
    ))
}

/// The memory of the PCI device that is nothing else.
pub fn bar_file() -> anyhow::Result<File> {
    for entry in fs::read_dir("/sys/bus/pci/devices")? {
        let path = entry?.path();
        let is = |name: &str, value: &str| {
            fs::read_to_string(path.join(name)).is_ok_and(|text| text.trim() == value)
        };
        // ivshmem
        if is("vendor", "0x1af4") && is("device", "0x1110") {
            return read_write(path.join("resource2"));
        }
    }
    bail!("there is no ivshmem device")
}

pub fn bar(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    let file = bar_file()?;
    Memory::of_file(file, 0, room(size, at), size, at).map(Some)
}

pub fn private_bar(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    let file = bar_file()?;
    Ok(Some(
        Memory::of(Source::Private(file.as_fd(), 0), size, at)?.keep(file),
    ))
}

// ---- buffers of another video device

/// `VIDIOC_REQBUFS` of MMAP capture buffers: how many there are.
pub fn reqbufs_mmap(video: &Video, count: u32) -> Result<u32, Errno> {
    let mut request = V4l2RequestBuffers {
        count,
        buf_type: CAPTURE,
        memory: memory::MMAP,
        ..V4l2RequestBuffers::default()
    };
    video.reqbufs_raw(&mut request).map(|()| request.count)
}

/// Where a buffer is to be mapped, and its bytes in whole pages.
pub fn place_of(video: &Video, index: u32) -> anyhow::Result<(u64, usize)> {
    let told = video
        .on_buffer(command::QUERYBUF, mmap_buffer(index))
        .context("QUERYBUF")?;
    // Of the union only the low half is the offset.
    Ok((
        told.m & 0xffff_ffff,
        (told.length as usize).next_multiple_of(PAGE),
    ))
}

fn mmap_buffer(index: u32) -> V4l2Buffer {
    V4l2Buffer {
        index,
        buf_type: CAPTURE,
        memory: memory::MMAP,
        ..V4l2Buffer::default()
    }
}

/// `VIDIOC_QBUF` of an MMAP capture buffer.
pub fn qbuf_mmap(video: &Video, index: u32) -> Result<(), Errno> {
    video.on_buffer(command::QBUF, mmap_buffer(index)).map(drop)
}

/// `VIDIOC_DQBUF` of an MMAP capture buffer: its index.
pub fn dqbuf_mmap(video: &Video) -> Result<u32, Errno> {
    let done = video.on_buffer(command::DQBUF, mmap_buffer(0))?;
    Ok(done.index)
}

/// Buffer 1 of four, and `others` more of them mapped elsewhere.
fn v4l2(number: u32, others: &[u32], size: usize, at: usize) -> anyhow::Result<Memory> {
    let video = real(number).open()?;
    let count = reqbufs_mmap(&video, 4)?;
    ensure!(count == 4, "{count} buffers");
    let mut mapped = vec![];
    for index in others {
        let (offset, length) = place_of(&video, *index)?;
        mapped.push(Memory::of_length(
            length,
            Source::Shared(video.as_fd(), offset),
            size,
            at,
        )?);
    }
    let (offset, length) = place_of(&video, 1)?;
    Ok(Memory::of_file(video, offset, length, size, at)?.keep(mapped))
}

pub fn v4l2_vmalloc(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    v4l2(EXPORTER, &[], size, at).map(Some)
}

pub fn v4l2_vmalloc_several(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    v4l2(EXPORTER, &[0, 2, 3], size, at).map(Some)
}

pub fn v4l2_contig(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    v4l2(CONTIG_EXPORTER, &[], size, at).map(Some)
}

pub fn v4l2_contig_several(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    v4l2(CONTIG_EXPORTER, &[0, 2, 3], size, at).map(Some)
}

pub fn closed_v4l2_vmalloc(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    Ok(v4l2_vmalloc(size, at)?.map(Memory::closed))
}

pub fn closed_v4l2_contig(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    Ok(v4l2_contig(size, at)?.map(Memory::closed))
}

// ---- DRM

/// The DRM node of this PCI driver. Whoever opens it first is its master, which nobody wants here.
fn card(driver: &str) -> anyhow::Result<File> {
    for entry in fs::read_dir("/sys/class/drm")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let of = fs::read_link(entry.path().join("device/driver")).unwrap_or_default();
        let is_card = name
            .strip_prefix("card")
            .is_some_and(|number| number.parse::<u32>().is_ok());
        if is_card && of.ends_with(driver) {
            let file = read_write(PathBuf::from("/dev/dri").join(name))?;
            // It is master only if nobody was.
            let _ = sys::ioctl_null(&file, DRM_IOCTL_DROP_MASTER);
            return Ok(file);
        }
    }
    bail!("there is no DRM node of {driver}")
}

/// A dumb buffer of at least so many bytes: its handle and its bytes.
fn dumb_buffer(card: &File, length: usize) -> anyhow::Result<(u32, usize)> {
    // struct drm_mode_create_dumb: u32 height, width, bpp, flags, handle, pitch; u64 size
    let height = u32::try_from(length.div_ceil(PAGE))?;
    let mut request = [height, 1024, 32, 0, 0, 0, 0, 0];
    sys::ioctl(card, DRM_IOCTL_MODE_CREATE_DUMB, &mut request).context("CREATE_DUMB")?;
    Ok((request[4], request[6] as usize))
}

fn dumb(driver: &str, size: usize, at: usize) -> anyhow::Result<Memory> {
    let card = card(driver)?;
    let (handle, length) = dumb_buffer(&card, at + size + PAGE)?;
    // struct drm_mode_map_dumb: u32 handle, u32 pad, u64 offset
    let mut request = [u64::from(handle), 0];
    sys::ioctl(&card, DRM_IOCTL_MODE_MAP_DUMB, &mut request).context("MAP_DUMB")?;
    Memory::of_file(card, request[1], length, size, at)
}

fn prime(driver: &str, size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    let card = card(driver)?;
    let (handle, _) = dumb_buffer(&card, at + size + PAGE)?;
    let Some(exported) = DmaBuf::of_drm(&card, handle)? else {
        return Ok(None);
    };
    drop(card);
    dma_buf(exported, size, at).map(Some)
}

pub fn virtio_gpu_dumb(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    dumb("virtio-pci", size, at).map(Some)
}

pub fn closed_virtio_gpu_dumb(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    Ok(virtio_gpu_dumb(size, at)?.map(Memory::closed))
}

pub fn virtio_gpu_prime(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    prime("virtio-pci", size, at)
}

pub fn bochs_dumb(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    dumb("bochs-drm", size, at).map(Some)
}

pub fn bochs_prime(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    prime("bochs-drm", size, at)
}

// ---- dma-bufs

fn dma_buf(dma_buf: DmaBuf, size: usize, at: usize) -> anyhow::Result<Memory> {
    let length = dma_buf.len();
    Memory::of_file(dma_buf, 0, length, size, at)
}

fn has_heap() -> bool {
    fs::exists("/dev/dma_heap/system").is_ok_and(|has| has)
}

pub fn heap(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    if !has_heap() {
        return Ok(None);
    }
    dma_buf(DmaBuf::from_heap(at + size + PAGE)?, size, at).map(Some)
}

/// No byte more than the pages of a frame.
pub fn tight_heap(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    if !has_heap() {
        return Ok(None);
    }
    dma_buf(DmaBuf::from_heap(at + size)?, size, at).map(Some)
}

pub fn closed_heap(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    Ok(heap(size, at)?.map(Memory::closed))
}

/// The second page of a dma-buf and those behind it.
pub fn heap_from_second_page(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    if !has_heap() {
        return Ok(None);
    }
    let whole = DmaBuf::from_heap(at + size + 2 * PAGE)?;
    let length = whole.len() - PAGE;
    Memory::of_file(whole, PAGE as u64, length, size, at).map(Some)
}

pub fn udmabuf(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    if !fs::exists("/dev/udmabuf")? {
        return Ok(None);
    }
    let length = room(size, at);
    let memfd = memfd_of(length, SealFlag::F_SEAL_SHRINK)?;
    dma_buf(DmaBuf::of_memfd(&memfd, length)?, size, at).map(Some)
}

/// The same of huge pages.
pub fn huge_udmabuf(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    if !fs::exists("/dev/udmabuf")? {
        return Ok(None);
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_ALLOW_SEALING;
    let memfd = File::from(memfd_create(c"huge", flags)?);
    let length = (at + size + PAGE).next_multiple_of(HUGE);
    memfd.set_len(length as u64)?;
    fcntl(&memfd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
    dma_buf(DmaBuf::of_memfd(&memfd, length)?, size, at).map(Some)
}

/// The first half of a frame in plain memory, the second in a dma-buf.
pub fn half_heap(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    if !has_heap() {
        return Ok(None);
    }
    let memory = Memory::of(Source::Anonymous, size, at)?;
    let (half, length) = (half(size, at), memory.area.len());
    let second = DmaBuf::from_heap(length - half)?;
    memory.area.map(
        half,
        length - half,
        Source::Shared(second.as_fd(), 0),
        Rights::ReadWrite,
    )?;
    Ok(Some(memory.keep(second)))
}

/// Each half in a dma-buf of its own.
pub fn two_heaps(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    let Some(memory) = half_heap(size, at)? else {
        return Ok(None);
    };
    let half = half(size, at);
    let first = DmaBuf::from_heap(half)?;
    memory
        .area
        .map(0, half, Source::Shared(first.as_fd(), 0), Rights::ReadWrite)?;
    Ok(Some(memory.keep(first)))
}

/// The first half in plain memory, the second in a framebuffer that is I/O memory.
pub fn half_vesafb(size: usize, at: usize) -> anyhow::Result<Option<Memory>> {
    let memory = Memory::of(Source::Anonymous, size, at)?;
    let (half, length) = (half(size, at), memory.area.len());
    let second = read_write(framebuffer_path("VESA VGA")?)?;
    memory.area.map(
        half,
        length - half,
        Source::Shared(second.as_fd(), 0),
        Rights::ReadWrite,
    )?;
    Ok(Some(memory.keep(second)))
}
