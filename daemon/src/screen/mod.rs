//! A framebuffer of our own making: memory that programs map and draw into, fbdev's rules about it
//! (`vidcompat_proto::screen`), and an output that shows it, or none.

mod convert;
mod desk;
mod drawn;
mod file;
mod memory;
mod paced;
mod present;
mod status;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vidcompat_proto::Errno;
use vidcompat_proto::screen::{Hardware, ModeTiming, Rules, ScreenMode};

use self::desk::Desk;
use self::memory::Memory;
use self::paced::Paced;
use self::present::Presenter;
use crate::backend::framebuffer::{Framebuffer, FramebufferFile, Picture, ScreenMemory};
use crate::backend::output::Output;
use crate::observe::model;

/// How long a card may take to give its screen back when we end.
const PATIENCE: Duration = Duration::from_secs(3);

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
    presenter: Option<JoinHandle<()>>,
}

impl Screen {
    /// A screen on `output`, or one that nobody sees. Nothing is taken from anybody before a program draws.
    ///
    /// # Errors
    /// No memory, no thread; `EINVAL`: the output has no room for such a picture, or there is no such depth.
    pub fn new(options: ScreenOptions, output: Option<Box<dyn Output>>) -> io::Result<Arc<Self>> {
        let Some(output) = output else {
            let modes = vec![unseen(options.size)];
            let memory = Memory::shadow(bytes_for(&modes)?)?;
            let hardware = Hardware {
                id: "vidcompat".to_owned(),
                memory: size(&memory)?,
                modes,
                direct_pitch: None,
                size_mm: None,
            };
            let desk = Desk::new(
                memory,
                rules(hardware, &options)?,
                Arc::new(Paced::new(60_000)),
                false,
            )?;
            return Ok(Arc::new(Self {
                desk: Arc::new(desk),
                presenter: None,
            }));
        };
        let (desk, presenter) = Self::on(&options, output)?;
        let thread = std::thread::Builder::new().name("screen".to_owned());
        let thread = thread.spawn(|| presenter.run())?;
        Ok(Arc::new(Self {
            desk,
            presenter: Some(thread),
        }))
    }

    /// A screen on `output` and who shows it there.
    fn on(options: &ScreenOptions, mut output: Box<dyn Output>) -> io::Result<(Arc<Desk>, Presenter)> {
        let modes = output.modes().to_vec();
        let direct = if options.direct {
            direct(&mut *output, &modes)
        } else {
            None
        };
        let (memory, direct_pitch) = match direct {
            Some((memory, pitch)) => (memory, Some(pitch)),
            None => (Memory::shadow(bytes_for(&modes)?)?, None),
        };
        let hardware = Hardware {
            // As DRM's own emulation calls itself.
            id: format!("{}drmfb", output.name()),
            memory: size(&memory)?,
            modes,
            direct_pitch,
            size_mm: output.size_mm(),
        };
        let desk = Arc::new(Desk::new(
            memory,
            rules(hardware, options)?,
            output.vsync(),
            true,
        )?);
        let presenter = Presenter::new(&desk, output, options.keep);
        Ok((desk, presenter))
    }

    /// Its memory, by `st_dev` and `st_ino` of what programs map.
    pub fn memory(&self) -> Option<((u64, u64), Arc<dyn ScreenMemory>)> {
        let memory: Arc<dyn ScreenMemory> = Arc::<Desk>::clone(&self.desk);
        Some((self.desk.memory().inode(), memory))
    }
}

/// The screen is given back before this returns, unless the driver hangs.
impl Drop for Screen {
    fn drop(&mut self) {
        self.desk.stop();
        let Some(presenter) = self.presenter.take() else {
            return;
        };
        let deadline = Instant::now() + PATIENCE;
        while !presenter.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if !presenter.is_finished() {
            tracing::warn!(
                "a graphics card does not answer; the kernel gives its screen back with the process"
            );
        } else if presenter.join().is_err() {
            tracing::error!("the thread that shows a framebuffer has failed");
        }
    }
}

impl Framebuffer for Screen {
    fn open(&self, flags: libc::c_int) -> Result<Box<dyn FramebufferFile>, Errno> {
        Ok(Box::new(file::ScreenFile::new(&self.desk, flags)))
    }

    fn picture(&self) -> Result<Picture, String> {
        Ok(self.desk.picture())
    }

    fn status(&self) -> model::Framebuffer {
        self.desk.status()
    }
}

fn rules(hardware: Hardware, options: &ScreenOptions) -> io::Result<Rules> {
    let rules = Rules::new(hardware, options.size, options.depth);
    rules.map_err(|error| io::Error::from_raw_os_error(error.raw()))
}

fn size(memory: &Memory) -> io::Result<u32> {
    u32::try_from(memory.bytes().size()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Memory that the hardware shows as it is, with room for the best mode twice, or once where the card has no more; and its
/// pitch. A mode that needs more than that is not offered. `None`: what programs draw is copied.
fn direct(output: &mut dyn Output, modes: &[ScreenMode]) -> Option<(Memory, u32)> {
    let best = modes.first()?;
    let twice = output.direct(0, best.height.checked_mul(2)?);
    let made = twice
        .or_else(|_| output.direct(0, best.height))
        .map_err(|error| error.to_string());
    let made = made.and_then(|made| {
        let memory = Memory::direct(&made).map_err(|error| error.to_string())?;
        Ok((memory, made.pitch))
    });
    match made {
        Ok(made) => Some(made),
        Err(error) => {
            tracing::info!(
                output = output.name(),
                error,
                "what programs draw is copied: the card's own memory does not do"
            );
            None
        }
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

/// What udmabuf takes by default.
const UDMABUF_MOST: u64 = 64 << 20;

/// Memory for the largest mode in the widest format, twice, so that programs can draw beside what is shown; but no more than
/// devices can have, if that is enough for one.
fn bytes_for(modes: &[ScreenMode]) -> io::Result<u32> {
    let bytes = |mode: &ScreenMode| u64::from(mode.width) * u64::from(mode.height) * 4;
    let one = modes.iter().map(bytes).max().unwrap_or_default();
    memory::whole_pages((one * 2).min(one.max(UDMABUF_MOST)))
}
