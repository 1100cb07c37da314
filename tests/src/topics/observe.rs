//! What `vidcompat status` and `vidcompat explain` say, held against what the nodes do.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, ftruncate};
use serde_json::Value;
use vidcompat_proto::abi::v4l2::V4l2RequestBuffers;

use crate::client::{AT_ONCE, run, run_any};
use crate::daemon::{self, Daemon};
use crate::setup::{CONTIG, SPARE, Test, VMALLOC, both_real, is_6_1};
use crate::sys::{self, Area, DmaBuf, PAGE, Pages, Rights, Source};
use crate::video::{CAPTURE, Node, Video, command, memory, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    (
        "observe::status_tells_of_every_open_file_its_queue_and_how_each_buffer_is_served",
        status,
    ),
    (
        "observe::explain_says_what_qbuf_says_on_the_real_node_and_on_ours",
        explain,
    ),
    (
        "observe::a_second_daemon_goes_on_without_the_socket_and_a_dead_ones_is_replaced",
        sockets,
    ),
    (
        "observe::who_says_nothing_at_the_socket_delays_no_frame",
        silent_askers,
    ),
];

const SOCKET: &str = "/run/vidcompat-test/control.sock";

fn spare() -> anyhow::Result<Daemon> {
    let device = real(SPARE).path().display().to_string();
    Daemon::start(&["--device", &device, "--control", SOCKET])
}

fn ask() -> anyhow::Result<Value> {
    let text = run("vidcompat", &["status", "--json", "--control", SOCKET], AT_ONCE)?;
    Ok(serde_json::from_str(&text)?)
}

fn status() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    let daemon = spare()?;
    let idle = ask()?;
    ensure!(idle["pid"] == daemon.pid().as_raw(), "{idle}");
    ensure!(idle["devices"][0]["files"] == serde_json::json!([]), "{idle}");
    ensure!(idle["devices"][0]["driver"] == "vivid", "{idle}");

    let video = ours(SPARE).open()?;
    let size = video.sizeimage()?;
    let pages = Pages::new(size as usize)?;
    ensure!(video.reqbufs(2)? == 2, "not two buffers");
    video.qbuf(0, pages.at(0), size)?;
    video.streamon()?;
    for _ in 0..3 {
        video.dqbuf()?;
        video.qbuf(0, pages.at(0), size)?;
    }
    let busy = ask()?;
    let file = &busy["devices"][0]["files"][0];
    ensure!(file["pid"] == Pid::this().as_raw(), "{file}");
    let queue = &file["queues"][0];
    ensure!(
        queue["buf_type"] == "video capture" && queue["streaming"] == true,
        "{queue}"
    );
    let counters = &queue["counters"];
    ensure!(counters["frames"] == 3 && counters["copied"] == 3, "{counters}");
    ensure!(counters["copied_bytes"] == 3 * u64::from(size), "{counters}");
    ensure!(counters["imported"] == 0 && counters["faults"] == 0, "{counters}");
    let plane = &queue["buffers"][0]["planes"][0];
    ensure!(
        plane["client_addr"] == pages.at(0) && plane["length"] == size,
        "{plane}"
    );
    ensure!(plane["how"] == "copied", "{plane}");
    ensure!(
        queue["buffers"].as_array().map(Vec::len) == Some(2),
        "not two buffers: {queue}"
    );
    // Without --json: the same for people.
    let page = run("vidcompat", &["status", "--control", SOCKET], AT_ONCE)?;
    for part in [
        "/dev/video66 for /dev/video2 (vivid): 1 open file",
        "3 frames, 0 imported, 3 copied",
        "not queued yet",
    ] {
        ensure!(page.contains(part), "no `{part}` in\n{page}");
    }
    ensure!(page.lines().all(|line| line.chars().count() <= 100), "{page}");
    drop(video);
    ensure!(
        ask()?["devices"][0]["files"] == serde_json::json!([]),
        "a closed file"
    );
    Ok(())
}

/// QBUF of `len` bytes at `client_addr`: done, or EFAULT.
fn qbuf(node: Node, client_addr: u64, len: u32) -> anyhow::Result<bool> {
    let video = node.open()?;
    video.reqbufs(1)?;
    match video.qbuf(0, client_addr, len) {
        Ok(_) => Ok(true),
        Err(Errno::EFAULT) => Ok(false),
        Err(errno) => Err(errno).context("QBUF"),
    }
}

fn explained(client_addr: u64, len: u32, more: &[&str]) -> anyhow::Result<(bool, Value)> {
    let (pid, address, len) = (
        Pid::this().to_string(),
        format!("{client_addr:#x}"),
        len.to_string(),
    );
    let args = [&["explain", "--json"], more, &[&*pid, &*address, &*len]].concat();
    let (status, text) = run_any("vidcompat", &args, AT_ONCE)?;
    let value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(matches!(status.code(), Some(0 | 1)), "{status}: {text}");
    Ok((status.success(), value))
}

fn explain() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    daemon::shared()?;
    let len = real(VMALLOC).open()?.sizeimage()?;
    let whole = (len as usize).next_multiple_of(PAGE);
    let area = || Area::reserve(whole + PAGE);
    let check = |name: &str, at: &Area| -> anyhow::Result<()> {
        let (client_addr, facts) = (at.at(0), explained(at.at(0), len, &["--queue", "vmalloc"])?);
        let (served, value) = facts;
        let mappings = value["mappings"].as_array().context("no mappings")?;
        let native =
            value["hole"].is_null() && mappings.iter().all(|mapping| mapping["native"]["ok"] == true);
        let (on_real, on_ours) = (
            qbuf(real(VMALLOC), client_addr, len)?,
            qbuf(ours(VMALLOC), client_addr, len)?,
        );
        ensure!(
            native == on_real,
            "{name}: the real node takes it: {on_real}; {value:#}"
        );
        ensure!(served == on_ours, "{name}: ours takes it: {on_ours}; {value:#}");
        Ok(())
    };
    let memfd = fs::File::from(memfd_create(c"frames", MFdFlags::empty())?);
    ftruncate(&memfd, i64::try_from(whole)?)?;
    for (name, source, rights) in [
        ("anonymous memory", Source::Anonymous, Rights::ReadWrite),
        ("read-only memory", Source::Anonymous, Rights::ReadOnly),
        ("memfd", Source::Shared(memfd.as_fd(), 0), Rights::ReadWrite),
        (
            "read-only memfd",
            Source::Shared(memfd.as_fd(), 0),
            Rights::ReadOnly,
        ),
    ] {
        let memory = area()?;
        memory.map(0, whole, source, rights)?;
        check(name, &memory)?;
    }
    let short = area()?;
    short.map(0, whole - PAGE, Source::Anonymous, Rights::ReadWrite)?;
    check("memory that ends before the frame", &short)?;
    if !is_6_1() {
        let heap = DmaBuf::from_heap(whole)?;
        let memory = area()?;
        memory.map(0, whole, Source::Shared(heap.as_fd(), 0), Rights::ReadWrite)?;
        check("dma-buf", &memory)?;
    }
    for number in [SPARE, CONTIG] {
        let video = real(number).open()?;
        let (offset, length) = mmap_buffer(&video)?;
        ensure!(length >= len, "another format");
        let memory = area()?;
        memory.map(0, whole, Source::Shared(video.as_fd(), offset), Rights::ReadWrite)?;
        check(&format!("V4L2 buffer of video{number}"), &memory)?;
    }
    // The rest of the exit statuses.
    let (status, text) = run_any("vidcompat", &["explain", "999999999", "0x1000", "1"], AT_ONCE)?;
    ensure!(
        status.code() == Some(2) && text.contains("there is no process"),
        "{status}: {text}"
    );
    let (status, text) = run_any("vidcompat", &["explain", "2", "0x1000", "1"], AT_ONCE)?;
    ensure!(
        status.code() == Some(2) && text.contains("has no memory"),
        "{status}: {text}"
    );
    Ok(())
}

/// Offset for mmap and length of MMAP buffer 0 of the file, which gets one.
fn mmap_buffer(video: &Video) -> anyhow::Result<(u64, u32)> {
    let mut request = V4l2RequestBuffers {
        count: 1,
        buf_type: CAPTURE,
        memory: memory::MMAP,
        ..V4l2RequestBuffers::default()
    };
    sys::ioctl(video, command::REQBUFS, &mut request)?;
    let buffer = video.querybuf(0)?;
    Ok((buffer.m & 0xffff_ffff, buffer.length))
}

fn sockets() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    let mut first = spare()?;
    let mode = fs::metadata(SOCKET)?.permissions().mode() & 0o7777;
    ensure!(mode == 0o600, "mode {mode:o}");
    let second = Daemon::start(&["--device", "/dev/video3", "--control", SOCKET])?;
    let (log, owner) = (second.log(), format!("in use by process {}", first.pid()));
    ensure!(log.contains(&owner), "{log}");
    ensure!(ask()?["pid"] == first.pid().as_raw(), "another daemon answers");
    drop(second);
    ensure!(
        ask()?["pid"] == first.pid().as_raw(),
        "the second has taken the first's socket along"
    );

    first.end(Signal::SIGKILL, AT_ONCE)?;
    ensure!(fs::exists(SOCKET)?, "a killed daemon cannot have removed it");
    let (status, text) = run_any("vidcompat", &["status", "--control", SOCKET], AT_ONCE)?;
    ensure!(
        status.code() == Some(1) && text.contains("no vidcompatd listens"),
        "{status}: {text}"
    );
    let third = spare()?;
    ensure!(ask()?["pid"] == third.pid().as_raw(), "no new socket");
    drop(third);
    ensure!(!fs::exists(SOCKET)?, "the socket outlives its daemon");
    Ok(())
}

fn silent_askers() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    let _daemon = spare()?;
    let video = ours(SPARE).open()?;
    let size = video.sizeimage()?;
    let pages = Pages::new(size as usize)?;
    video.reqbufs(1)?;
    video.streamon()?;
    let frame = || -> anyhow::Result<()> {
        video.qbuf(0, pages.at(0), size)?;
        video.dqbuf()?;
        Ok(())
    };
    frame()?;
    // Some say nothing, some too much. No more than the kernel lets wait.
    let mut askers = Vec::new();
    for number in 0..20 {
        let mut stream = UnixStream::connect(SOCKET)?;
        stream.set_nonblocking(true)?;
        if number % 2 == 1 {
            // As much as is taken.
            let _ = stream.write(&[b'x'; 1 << 20]);
        }
        askers.push(stream);
    }
    let begun = Instant::now();
    for _ in 0..10 {
        frame()?;
    }
    ensure!(begun.elapsed() < AT_ONCE, "ten frames took {:?}", begun.elapsed());
    drop(askers);
    ask().map(drop)
}
