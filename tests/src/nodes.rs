//! The V4L2 nodes that this guest has, found by what they say of themselves (QUERYCAP), and the side node of each.
//!
//! Which number a node has depends on the order in which modules register theirs; tests that want "the video output
//! of the multi-planar vivid" ask for it here. For plain cameras, where the order is all there is, see `setup`.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};

use crate::sys;
use crate::video::command;

/// Bits of `device_caps` (`V4L2_CAP_*`, linux/videodev2.h).
pub mod cap {
    pub const VIDEO_CAPTURE: u32 = 0x0000_0001;
    pub const VIDEO_OUTPUT: u32 = 0x0000_0002;
    pub const VBI_CAPTURE: u32 = 0x0000_0010;
    pub const VBI_OUTPUT: u32 = 0x0000_0020;
    pub const RDS_CAPTURE: u32 = 0x0000_0100;
    pub const RDS_OUTPUT: u32 = 0x0000_0800;
    pub const VIDEO_CAPTURE_MPLANE: u32 = 0x0000_1000;
    pub const VIDEO_OUTPUT_MPLANE: u32 = 0x0000_2000;
    pub const VIDEO_M2M_MPLANE: u32 = 0x0000_4000;
    pub const VIDEO_M2M: u32 = 0x0000_8000;
    pub const SDR_CAPTURE: u32 = 0x0010_0000;
    pub const META_CAPTURE: u32 = 0x0080_0000;
    pub const META_OUTPUT: u32 = 0x0800_0000;
    pub const TOUCH: u32 = 0x1000_0000;
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Camera, tuner, HDMI input.
    VideoCapture,
    /// Screen.
    VideoOutput,
    /// Raw and sliced VBI from an input.
    VbiCapture,
    /// Raw and sliced VBI to an output.
    VbiOutput,
    /// Receiver.
    RadioRx,
    /// Transmitter.
    RadioTx,
    /// Software-defined radio.
    Sdr,
    /// Metadata from a device.
    MetaCapture,
    /// Metadata to a device.
    MetaOutput,
    /// Touch screen.
    Touch,
    /// Both directions in one node: scalers and codecs.
    M2m,
}

impl Kind {
    /// All kinds that a vivid has.
    pub const OF_VIVID: [Self; 10] = [
        Self::VideoCapture,
        Self::VideoOutput,
        Self::VbiCapture,
        Self::VbiOutput,
        Self::RadioRx,
        Self::RadioTx,
        Self::Sdr,
        Self::MetaCapture,
        Self::MetaOutput,
        Self::Touch,
    ];

    /// The kind of a node with these `device_caps`, if it is one of ours to test.
    fn of(caps: u32) -> Option<Self> {
        // A touch node also says "video capture".
        [
            (cap::TOUCH, Self::Touch),
            (cap::VIDEO_M2M | cap::VIDEO_M2M_MPLANE, Self::M2m),
            (cap::VIDEO_CAPTURE | cap::VIDEO_CAPTURE_MPLANE, Self::VideoCapture),
            (cap::VIDEO_OUTPUT | cap::VIDEO_OUTPUT_MPLANE, Self::VideoOutput),
            (cap::VBI_CAPTURE, Self::VbiCapture),
            (cap::VBI_OUTPUT, Self::VbiOutput),
            (cap::META_CAPTURE, Self::MetaCapture),
            (cap::META_OUTPUT, Self::MetaOutput),
            (cap::SDR_CAPTURE, Self::Sdr),
            (cap::RDS_CAPTURE, Self::RadioRx),
            (cap::RDS_OUTPUT, Self::RadioTx),
        ]
        .into_iter()
        .find(|(bits, _)| caps & bits != 0)
        .map(|(_, kind)| kind)
    }
}

/// A real node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name under `/dev` and in sysfs, e.g. `vbi0`.
    pub file: String,
    /// What the driver calls this one node (sysfs), e.g. `stateful-encoder`: the nodes of vicodec differ in nothing else.
    pub name: String,
    /// From QUERYCAP.
    pub driver: String,
    /// From QUERYCAP.
    pub card: String,
    /// From QUERYCAP, e.g. `platform:vivid-000`.
    pub bus_info: String,
    /// From QUERYCAP.
    pub device_caps: u32,
    /// What it is for.
    pub kind: Kind,
}

impl Found {
    /// The real node.
    pub fn real(&self) -> PathBuf {
        PathBuf::from("/dev").join(&self.file)
    }

    /// N of `/dev/videoN`.
    pub fn number(&self) -> anyhow::Result<u32> {
        let number = self.file.strip_prefix("video").and_then(|n| n.parse().ok());
        number.with_context(|| format!("{self} is not a video node"))
    }

    /// Ours beside it: the number is 64 higher.
    pub fn ours(&self) -> PathBuf {
        let prefix = self.file.trim_end_matches(|c: char| c.is_ascii_digit());
        // A number, by its making.
        let number: u32 = self.file[prefix.len()..].parse().unwrap_or_default();
        PathBuf::from(format!("/dev/{prefix}{}", number + 64))
    }

    /// Multi-planar?
    pub fn is_mplane(&self) -> bool {
        self.device_caps & (cap::VIDEO_CAPTURE_MPLANE | cap::VIDEO_OUTPUT_MPLANE | cap::VIDEO_M2M_MPLANE) != 0
    }

    fn of(file: String) -> anyhow::Result<Option<Self>> {
        let mut capability = [0_u8; 104];
        let node = fs::File::open(format!("/dev/{file}")).with_context(|| format!("open /dev/{file}"))?;
        sys::ioctl(&node, command::QUERYCAP, &mut capability)
            .with_context(|| format!("QUERYCAP of {file}"))?;
        let text = |from: usize, len: usize| {
            let bytes = &capability[from..from + len];
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(len);
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        // struct v4l2_capability: driver, card, bus_info, version, capabilities, device_caps.
        let device_caps =
            u32::from_ne_bytes([capability[88], capability[89], capability[90], capability[91]]);
        let name = fs::read_to_string(format!("/sys/class/video4linux/{file}/name"))?;
        Ok(Kind::of(device_caps).map(|kind| Self {
            name: name.trim().to_owned(),
            driver: text(0, 16),
            card: text(16, 32),
            bus_info: text(48, 32),
            device_caps,
            kind,
            file,
        }))
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.file, self.name)
    }
}

/// All real nodes, in the order of their minors, which is that of their making.
pub fn all() -> anyhow::Result<Vec<Found>> {
    let mut files = Vec::new();
    // Ours are not in this class.
    for entry in fs::read_dir("/sys/class/video4linux")? {
        let file = entry?.file_name().to_string_lossy().into_owned();
        let number = fs::read_to_string(format!("/sys/class/video4linux/{file}/dev"))?;
        let minor: u32 = number.trim().trim_start_matches("81:").parse()?;
        files.push((minor, file));
    }
    files.sort();
    let mut nodes = Vec::new();
    for (_, file) in files {
        if !file.starts_with("v4l-subdev") {
            nodes.extend(Found::of(file)?);
        }
    }
    Ok(nodes)
}

/// The only real node for which `is` holds.
pub fn find(what: &str, is: impl Fn(&Found) -> bool) -> anyhow::Result<Found> {
    let mut nodes = all()?;
    nodes.retain(is);
    ensure!(nodes.len() == 1, "{} nodes are {what}: {nodes:?}", nodes.len());
    nodes.pop().context("just counted")
}

/// The node of this kind of the `instance`-th vivid.
pub fn vivid(instance: u32, kind: Kind) -> anyhow::Result<Found> {
    let bus = format!("platform:vivid-{instance:03}");
    find(&format!("{kind:?} of {bus}"), |node| {
        node.bus_info == bus && node.kind == kind
    })
}

/// A node by what its driver calls it: `vim2m`, `stateful-encoder`, `stateful-decoder`, `stateless-decoder`.
pub fn named(name: &str) -> anyhow::Result<Found> {
    find(name, |node| node.name == name)
}

/// The nodes of v4l2loopback.
pub fn loopbacks() -> anyhow::Result<Vec<Found>> {
    let mut nodes = all()?;
    nodes.retain(|node| node.driver == "v4l2 loopback");
    Ok(nodes)
}
