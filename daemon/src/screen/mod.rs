//! A framebuffer of our own making: memory that programs map and draw into, fbdev's rules about it
//! (`vidcompat_proto::screen`), and an output that shows it, or none.

mod convert;
mod desk;
mod file;
mod memory;
mod paced;

use std::io;
use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::screen::{Hardware, ModeTiming, Rules, ScreenMode};

use self::desk::Desk;
use self::memory::Memory;
use self::paced::Paced;
use crate::backend::framebuffer::{Framebuffer, FramebufferFile, Picture, ScreenMemory};
use crate::backend::output::{Mode, Output};

/// What the operator wants of a screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScreenOptions {
    /// Of the mode that it begins with; `None`: the output's best, and 1024x768 without an output.
    pub size: Option<(u32, u32)>,
    /// Bits per pixel that it begins with: 8, 16, 24 or 32.
    pub depth: u32,
    /// May programs draw straight into memory that the hardware shows, where the format is the hardware's?
    pub direct: bool,
    /// Is a picture to stay when the last program has closed the framebuffer? `None`: where no console would come back.
    pub keep: Option<bool>,
}

/// A framebuffer of our own.
#[derive(Debug)]
pub struct Screen {
    desk: Arc<Desk>,
}

impl Screen {
    /// A screen on `output`, or one that nobody sees. Nothing is taken from anybody before a program draws.
    ///
    /// # Errors
    /// No memory, no thread; `InvalidInput`: the output has no room for such a picture.
    pub fn new(options: ScreenOptions, output: Option<Box<dyn Output>>) -> io::Result<Arc<Self>> {
        let modes = match &output {
            Some(output) => output.modes().iter().map(of_output).collect(),
            None => vec![unseen(options.size)],
        };
        let memory = Memory::shadow(bytes_for(&modes)?)?;
        let vsync = Arc::new(Paced::new(60_000));
        let hardware = Hardware {
            id: "vidcompat".to_owned(),
            memory: u32::try_from(memory.bytes().size()).map_err(|_| io::ErrorKind::InvalidInput)?,
            modes,
            direct_pitch: None,
            size_mm: None,
        };
        let rules = Rules::new(hardware, options.size, options.depth);
        let rules = rules.map_err(|error| io::Error::from_raw_os_error(error.raw()))?;
        Ok(Arc::new(Self {
            desk: Arc::new(Desk::new(memory, rules, vsync, false)),
        }))
    }

    /// Its memory, by `st_dev` and `st_ino` of what programs map.
    pub fn memory(&self) -> Option<((u64, u64), Arc<dyn ScreenMemory>)> {
        let memory: Arc<dyn ScreenMemory> = Arc::<Desk>::clone(&self.desk);
        Some((self.desk.memory().inode(), memory))
    }
}

impl Framebuffer for Screen {
    fn open(&self, flags: libc::c_int) -> Result<Box<dyn FramebufferFile>, Errno> {
        Ok(Box::new(file::ScreenFile::new(&self.desk, flags)))
    }

    fn picture(&self) -> Result<Picture, String> {
        Ok(self.desk.picture())
    }
}

/// The one mode of a screen that nobody sees.
fn unseen(size: Option<(u32, u32)>) -> ScreenMode {
    let (width, height) = size.unwrap_or((1024, 768));
    ScreenMode {
        width,
        height,
        refresh_mhz: 60_000,
        timing: ModeTiming::default(),
    }
}

fn of_output(mode: &Mode) -> ScreenMode {
    let timing = mode.timing;
    ScreenMode {
        width: mode.width,
        height: mode.height,
        refresh_mhz: mode.refresh_mhz,
        timing: ModeTiming {
            pixclock: timing.pixclock,
            left_margin: timing.left_margin,
            right_margin: timing.right_margin,
            upper_margin: timing.upper_margin,
            lower_margin: timing.lower_margin,
            hsync_len: timing.hsync_len,
            vsync_len: timing.vsync_len,
            sync: timing.sync,
            vmode: timing.vmode,
        },
    }
}

/// What udmabuf takes by default.
const UDMABUF_MOST: u64 = 64 << 20;

/// Memory for the largest mode in the widest format, twice, so that programs can draw beside what is shown; but no more than
/// devices can have, if that is enough for one.
fn bytes_for(modes: &[ScreenMode]) -> io::Result<u32> {
    let bytes = |mode: &ScreenMode| u64::from(mode.width) * u64::from(mode.height) * 4;
    let one = modes.iter().map(bytes).max().unwrap_or_default();
    memory::whole_pages((one * 2).min(one.max(UDMABUF_MOST)))
}
