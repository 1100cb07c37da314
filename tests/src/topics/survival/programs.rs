//! The devices, and the programs that use them while the daemon dies.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::plan::{Expect, Plan, plan};
use super::{FRAME, HEIGHT, PATIENCE, RATE, WIDTH};
use crate::client::run;
use crate::nodes::{Found, Kind, named, vivid};
use crate::picture::Control;
use crate::shim::Seat;
use crate::sys;
use crate::video::{Video, command};

/// `struct v4l2_streamparm` of a capture queue.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Rate {
    buf_type: u32,
    capability: u32,
    mode: u32,
    /// Seconds: numerator, denominator.
    interval: [u32; 2],
    rest: [u32; 46],
}

/// The devices: two cameras, vmalloc and dma-contig; an output; a camera with planes; vim2m.
pub struct Devices {
    pub camera: Found,
    pub contig: Found,
    pub output: Found,
    pub planar: Found,
    pub vim2m: Found,
}

impl Devices {
    pub fn find() -> anyhow::Result<Self> {
        Ok(Self {
            camera: vivid(0, Kind::VideoCapture)?,
            contig: vivid(1, Kind::VideoCapture)?,
            output: vivid(1, Kind::VideoOutput)?,
            planar: vivid(2, Kind::VideoCapture)?,
            vim2m: named("vim2m")?,
        })
    }

    pub fn all(&self) -> [&Found; 5] {
        [
            &self.camera,
            &self.contig,
            &self.output,
            &self.planar,
            &self.vim2m,
        ]
    }

    /// The cameras' pictures have numbers, at a rate that a busy machine keeps up with.
    pub fn prepare(&self) -> anyhow::Result<Vec<Control>> {
        let mut controls = Vec::new();
        for camera in [&self.camera, &self.contig, &self.planar] {
            let path = camera.real().display().to_string();
            let format = format!("width={WIDTH},height={HEIGHT},pixelformat=YUYV");
            run("v4l2-ctl", &["-d", &path, "-v", &format], Duration::from_secs(10))?;
            let mut rate = Rate {
                // V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE, V4L2_BUF_TYPE_VIDEO_CAPTURE
                buf_type: if camera.is_mplane() { 9 } else { 1 },
                interval: [1, RATE],
                ..Rate::new_zeroed()
            };
            let video = Video::at(&camera.real(), 0)?;
            sys::ioctl(&video, command::S_PARM, &mut rate).context("S_PARM")?;
            controls.push(Control::set(camera.number()?, "osd_text_mode", 1, 2)?);
        }
        Ok(controls)
    }
}

/// One frame of the real camera.
pub fn native(camera: &Found) -> anyhow::Result<Vec<u8>> {
    let (path, file) = (camera.real().display().to_string(), "/tmp/survival-native");
    let to = format!("--stream-to={file}");
    let args = ["-d", &path, "--stream-mmap=3", "--stream-count=1", &to];
    run("v4l2-ctl", &args, PATIENCE)?;
    let frame = fs::read(file)?;
    ensure!(
        frame.len() == FRAME,
        "{} bytes in a frame of {camera}",
        frame.len()
    );
    Ok(frame)
}

/// GStreamer imports only where somebody downstream has memory to give.
pub const USERPTR_GST: &str = "gst-launch-1.0 -q v4l2src device=NODE io-mode=userptr";
pub const TO_RGB: &str = "! video/x-raw,format=YUY2,width=320,height=180 ! videoconvert ! video/x-raw,format=RGB ! \
                      filesink location=FILE";

/// The same in RGB, by GStreamer.
pub fn native_rgb(camera: &Found) -> anyhow::Result<Vec<u8>> {
    let pipeline = format!("{USERPTR_GST} num-buffers=COUNT {TO_RGB}");
    let plan = plan(camera, Seat::real(camera), &pipeline, Expect::Itself);
    let status = plan.start(1)?.end(PATIENCE)?;
    let frame = fs::read(plan.file())?;
    ensure!(
        status.success() && frame.len() == WIDTH * HEIGHT * 3,
        "{status}, {} bytes in a frame of {camera}",
        frame.len()
    );
    Ok(frame)
}

pub const M2M_INPUT: &str = "/tmp/survival-m2m";
pub const M2M_FRAMES: usize = 40;

/// What vim2m makes of its input on the real node.
pub fn m2m_native(vim2m: &Found) -> anyhow::Result<Vec<u8>> {
    let byte = |at: usize| ((at / 3 + at / (WIDTH * HEIGHT * 3) * 5) % 251).to_le_bytes()[0];
    let input: Vec<u8> = (0..M2M_FRAMES * WIDTH * HEIGHT * 3).map(byte).collect();
    fs::write(M2M_INPUT, input)?;
    let (path, file) = (vim2m.real().display().to_string(), "/tmp/survival-m2m-native");
    let args = [
        "-d", &path, "-i", M2M_INPUT, "-o", file, "-F", "RGB3", "-f", "BGR3",
    ];
    run("m2m_userptr", &args, PATIENCE)?;
    let bytes = fs::read(file)?;
    fs::remove_file(file)?;
    ensure!(
        bytes.len() == M2M_FRAMES * WIDTH * HEIGHT * 3,
        "{} bytes",
        bytes.len()
    );
    Ok(bytes)
}

pub fn userptr(devices: &Devices) -> anyhow::Result<Vec<Plan<'_>>> {
    let Devices {
        camera,
        contig,
        output,
        planar,
        vim2m,
    } = devices;
    Ok(vec![
        plan(
            camera,
            Seat::plain(camera),
            "v4l2-ctl -d NODE --stream-user=4 --stream-count=COUNT --stream-to=FILE --verbose",
            Expect::Frames(native(camera)?),
        ),
        plan(
            contig,
            Seat::plain(contig),
            "survivor NODE userptr",
            Expect::Itself,
        ),
        plan(
            output,
            Seat::plain(output),
            "survivor -p NODE output",
            Expect::Itself,
        ),
        plan(
            planar,
            Seat::plain(planar),
            &format!("{USERPTR_GST} num-buffers=COUNT {TO_RGB}"),
            Expect::Frames(native_rgb(planar)?),
        ),
        plan(
            vim2m,
            Seat::plain(vim2m),
            &format!("m2m_userptr -d NODE -i {M2M_INPUT} -o FILE -F RGB3 -f BGR3"),
            Expect::Bytes(m2m_native(vim2m)?),
        ),
    ])
}

pub fn mapping(devices: &Devices) -> anyhow::Result<Vec<Plan<'_>>> {
    let Devices {
        camera,
        contig,
        output,
        planar,
        ..
    } = devices;
    Ok(vec![
        plan(
            camera,
            Seat::run(camera),
            "ffmpeg -v error -nostdin -f v4l2 -input_format yuyv422 -video_size 320x180 -i NODE -frames:v COUNT -c copy \
             -f rawvideo -y FILE",
            Expect::Frames(native(camera)?),
        ),
        plan(contig, Seat::run(contig), "survivor -p NODE mmap", Expect::Itself),
        plan(output, Seat::run(output), "survivor NODE output", Expect::Itself),
        plan(
            planar,
            Seat::run(planar),
            "v4l2-ctl -d NODE --stream-mmap=4 --stream-count=COUNT --stream-to=FILE --verbose",
            Expect::Frames(native(planar)?),
        ),
    ])
}

pub fn adopting(devices: &Devices) -> anyhow::Result<Vec<Plan<'_>>> {
    let Devices {
        camera,
        contig,
        planar,
        ..
    } = devices;
    Ok(vec![
        plan(
            camera,
            Seat::run(camera),
            "survivor -a NODE userptr",
            Expect::Itself,
        ),
        plan(
            contig,
            Seat::run(contig),
            "survivor -a -p NODE userptr",
            Expect::Itself,
        ),
        plan(
            planar,
            Seat::run(planar),
            "gst-launch-1.0 -q v4l2src device=NODE io-mode=mmap num-buffers=COUNT ! video/x-raw,format=YUY2,width=320,height=180 ! filesink location=FILE",
            Expect::Frames(native(planar)?),
        ),
    ])
}

pub fn reading(devices: &Devices) -> anyhow::Result<Vec<Plan<'_>>> {
    let Devices {
        camera,
        contig,
        planar,
        ..
    } = devices;
    // A third of a frame at a time.
    let dd = format!(
        "dd if=NODE of=FILE iflag=fullblock status=none bs={} count=COUNT3",
        FRAME / 3
    );
    Ok(vec![
        plan(camera, Seat::plain(camera), "survivor NODE read", Expect::Itself),
        plan(contig, Seat::plain(contig), &dd, Expect::Frames(native(contig)?)),
        plan(
            planar,
            Seat::plain(planar),
            "v4l2-ctl -d NODE --stream-user=4 --stream-poll --stream-count=COUNT --stream-to=FILE --verbose",
            Expect::Frames(native(planar)?),
        ),
    ])
}
