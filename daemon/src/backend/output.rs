//! Where a screen of ours is shown: a graphics card ([`super::kms`]), or nowhere.
//!
//! A screen decides what is in its memory and what is to be seen of it; an output knows hardware. Whose turn it is on the
//! card is the output's to find out: it may be told to show something at any time, and says whether anybody could see it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use vidcompat_proto::Errno;
use vidcompat_proto::screen::ScreenMode;

/// Memory that the hardware can show as it is: 32 bits a pixel, `DRM_FORMAT_XRGB8888`.
#[derive(Clone, Debug)]
pub struct Direct {
    /// It, as a dma-buf that can be mapped and written, and that lives as long as anybody has it.
    pub dma_buf: Arc<OwnedFd>,
    /// Bytes from one line to the next.
    pub pitch: u32,
    /// Lines that there are.
    pub lines: u32,
    /// Bytes.
    pub size: u64,
}

/// A rectangle of what is shown: pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// From the left.
    pub x: u32,
    /// From above.
    pub y: u32,
    /// Pixels.
    pub width: u32,
    /// Lines.
    pub height: u32,
}

/// Why nothing can be seen. The screen's memory is as it is; later it may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hidden {
    /// Somebody else is the card's master, or another virtual terminal is active.
    Busy,
    /// The card is gone, or has refused.
    Failed(Errno),
}

/// A buffer that the hardware shows or is about to show: `DRM_FORMAT_XRGB8888`.
pub struct Canvas<'a> {
    /// `pitch` bytes for each line.
    pub bytes: &'a mut [u8],
    /// Bytes from one line to the next.
    pub pitch: usize,
    /// Pixels of a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
}

/// See the module. Used by one thread at a time.
pub trait Output: Send {
    /// For people, and for `fb_fix_screeninfo::id`: the driver's name.
    fn name(&self) -> &str;
    /// What it can show, the best first; never empty.
    fn modes(&self) -> &[ScreenMode];
    /// Millimetres, where known.
    fn size_mm(&self) -> Option<(u32, u32)>;
    /// Memory for a picture of the width of `modes()[mode]` and `lines` lines that can be shown without a copy. Asked for
    /// once.
    ///
    /// # Errors
    /// The driver exports nothing, or has not as much: such a screen is drawn on canvases.
    fn direct(&mut self, mode: usize, lines: u32) -> Result<Direct, Errno>;
    /// Can another part of the direct memory be shown than its first lines? Where not, [`Output::show_direct`] is given 0, 0
    /// only, and a panned picture is drawn on canvases.
    fn can_pan_direct(&self) -> bool;
    /// Does the hardware's driver hold the direct memory at this moment, so that it counts among those who have it?
    fn holds_direct(&self) -> bool;
    /// Would a console come back if the screen were given back? Where none would, a picture may as well stay.
    fn has_console(&self) -> bool;

    /// Takes the screen and shows `modes()[mode]`: of the direct memory the part that begins at pixel `x`, line `y`, or the
    /// front canvas. Called again for another mode or part. Takes the screen from a console, and from nobody else. To be
    /// called again from time to time while hidden: it asks the hardware a few times a second at most, and answers at once
    /// in between. What is the same as before costs nothing.
    ///
    /// # Errors
    /// See [`Hidden`].
    fn show_direct(&mut self, mode: usize, x: u32, y: u32) -> Result<(), Hidden>;
    /// See [`Output::show_direct`]: what was drawn on the front canvas, which is to be drawn before it is shown.
    ///
    /// # Errors
    /// See [`Hidden`].
    fn show_canvas(&mut self, mode: usize) -> Result<(), Hidden>;
    /// The canvas that is shown (`back` false), or the one that [`Output::flip`] will show. What is on it is lost (black)
    /// when the mode changes, when the screen was hidden in between, and after [`Output::give_back`]: all of it is to be
    /// drawn then.
    ///
    /// # Errors
    /// `EBUSY`: there is none while the screen is hidden. Others: there is no memory for it.
    fn canvas(&mut self, mode: usize, back: bool) -> Result<Canvas<'_>, Errno>;
    /// Shows the back canvas, which becomes the front one, at the next vertical blank, and waits until it is shown. Hardware
    /// that has no vertical blanks shows it at once.
    ///
    /// # Errors
    /// See [`Hidden`].
    fn flip(&mut self, mode: usize) -> Result<(), Hidden>;
    /// Does the hardware have to be told of what was changed in shown memory? Known when something has been shown; yes
    /// until then.
    fn needs_damage(&self) -> bool;
    /// Tells it. Also finds out whether we are still to be seen: with no rectangle it does only that, a few times a second
    /// at most, and is to be called so from time to time by who has no damage to tell of.
    ///
    /// # Errors
    /// See [`Hidden`].
    fn damage(&mut self, rects: &[Rect]) -> Result<(), Hidden>;
    /// `FB_BLANK_*`: 0 is on.
    ///
    /// # Errors
    /// See [`Hidden`].
    fn blank(&mut self, level: u32) -> Result<(), Hidden>;
    /// Gives the screen back to whoever had it before (a console), if it is ours. Dropping does the same.
    fn give_back(&mut self);
    /// Vertical blanks, which others wait for at the same time.
    fn vsync(&self) -> Arc<dyn Vsync>;
}

/// Vertical blanks of an output, real ones or a timer's.
pub trait Vsync: Send + Sync {
    /// Waits in the calling thread for the next one, as long as a refresh takes and a little more.
    fn wait(&self);
    /// So many until now; wraps.
    fn count(&self) -> u32;
    /// From one to the next.
    fn period(&self) -> Duration;
}
